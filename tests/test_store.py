"""Folders appear whole, the manifest last, and what is damaged is refused in one sentence."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest

from vit_explain import store
from vit_explain.errors import OutputError
from vit_explain.store import npz, read_folder, write_folder


def arrays() -> dict[str, np.ndarray]:
    return {"relevance": np.arange(12, dtype=np.float32).reshape(3, 4), "file": np.array([True]), "e": np.zeros((0, 2))}


def refused(action: object, *words: str) -> None:
    with pytest.raises(OutputError) as caught:
        action()  # pyright: ignore[reportCallIssue]
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    folder, data = tmp_path / "a" / "b", npz(arrays())
    paths = write_folder(folder, {"explanation.npz": data, "ä.txt": b"x"}, {"zebra": "größe", "apple": [1, None]})
    assert [p.name for p in paths] == ["explanation.npz", "ä.txt", "manifest.json"]
    assert names(folder) == sorted(p.name for p in paths)
    text = paths[-1].read_text("utf-8")
    assert "größe" in text and text.index("zebra") < text.index("apple") and text.endswith("\n")
    manifest, loaded = read_folder(folder)
    assert manifest["files"][0] == {
        "name": "explanation.npz",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert loaded.keys() == arrays().keys()
    for name, array in arrays().items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)


def test_npz_is_deterministic_compressed_and_without_objects() -> None:
    assert npz(arrays()) == npz(arrays())
    assert len(npz({"zeros": np.zeros(100_000)})) < 2_000
    refused(lambda: npz({"bad": np.array([{}], dtype=object)}), "bad")


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (path, _) = write_folder(tmp_path, {"a": b""}, {})
    (tmp_path / "plain").write_bytes(b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_full_disk_leaves_earlier_results_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, {"explanation.npz": npz(arrays()), "b": b"old"}, {"run": 1})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if data == b"new b":
            write(path, data[:2])  # half of it arrives
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    refused(lambda: write_folder(tmp_path, {"explanation.npz": b"new a", "b": b"new b"}, {"run": 2}), "No space left")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert read_folder(tmp_path)[0]["run"] == 1


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_renaming_stopped_midway_leaves_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    new = npz({"relevance": np.ones(3)})
    write_folder(tmp_path, {"explanation.npz": npz(arrays()), "b": b"old"}, {"run": 1})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    replace, calls = os.replace, []

    def fails(source: Path, target: Path) -> None:
        if len(calls) == stop:
            raise PermissionError(errno.EACCES, "Permission denied")
        calls.append(target)
        replace(source, target)

    monkeypatch.setattr(store.os, "replace", fails)
    refused(lambda: write_folder(tmp_path, {"explanation.npz": new, "b": b"new"}, {"run": 2}), "Permission denied")
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert after.keys() == before.keys()  # no temporary file, nothing missing
    assert after["manifest.json"] == before["manifest.json"]
    wanted = {"explanation.npz": new, "b": b"new"}
    assert [after[n] for n in wanted] == [wanted[n] if i < stop else before[n] for i, n in enumerate(wanted)]
    if stop:
        refused(lambda: read_folder(tmp_path), "checksum")
    else:
        assert read_folder(tmp_path)[0]["run"] == 1


def test_an_interruption_cleans_up_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path, {"a": b"1"}, {})
    assert names(tmp_path) == []


def test_what_an_earlier_manifest_lists_does_not_stand_beside_the_new(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    folder = tmp_path / "folder"
    write_folder(folder, {"a": b"1", "b": b"2"}, {})
    (folder / "own").write_bytes(b"")
    write_folder(folder, {"b": b"3"}, {})
    assert names(folder) == ["b", "manifest.json", "own"]
    for entries in ([{"name": "../outside"}, {"name": ".."}, {"name": 3}, {}], 3):
        (folder / "manifest.json").write_text(json.dumps({"files": entries}))
        write_folder(folder, {"b": b"3"}, {})
        assert outside.exists() and names(folder) == ["b", "manifest.json", "own"]


def test_refusals_of_writing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    refused(lambda: write_folder(tmp_path / "file", {}, {}), "file")
    refused(lambda: write_folder(tmp_path / "file" / "below", {}, {}), "Not a directory")
    refused(lambda: write_folder("bad\0name", {}, {}))
    for name in ("../up", "a/b", "a\\b", "", ".", "..", "nul\0"):
        refused(lambda name=name: write_folder(tmp_path / "out", {name: b""}, {}), "plain file name")
    refused(lambda: write_folder(tmp_path / "out", {"manifest.json": b""}, {}), "manifest")
    for value in (float("nan"), float("inf"), {1, 2}, np.float32(1), object()):
        refused(lambda value=value: write_folder(tmp_path / "out", {}, {"value": value}), "JSON")
    refused(lambda: write_folder(tmp_path, {"n" * 300: b""}, {}), "too long")
    assert names(tmp_path) == ["file"]


def test_a_folder_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    refused(lambda: write_folder(tmp_path, {"a": b""}, {}))
    assert names(tmp_path) == ["a"]


def test_names_that_are_not_unicode_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    write_folder(tmp_path, {"explanation.npz": npz({})}, {"source": name})
    assert read_folder(tmp_path)[0]["source"] == name


def test_refusals_of_reading(tmp_path: Path) -> None:
    refused(lambda: read_folder(tmp_path / "gone"), "manifest.json", "gone")
    refused(lambda: read_folder(tmp_path), "manifest.json")
    manifest = tmp_path / "manifest.json"
    for text in (b"", b"{", b"\xff\xfe", b"[" * 100_000):
        manifest.write_bytes(text)
        refused(lambda: read_folder(tmp_path), "damaged")
    for text in (b"[]", b'{"files": 3}', b"{}", b'{"files": [1, {"name": "other"}]}', b'{"files": []}'):
        manifest.write_bytes(text)
        refused(lambda: read_folder(tmp_path), "manifest")
    write_folder(tmp_path, {"explanation.npz": npz(arrays())}, {})
    archive = tmp_path / "explanation.npz"
    good = archive.read_bytes()
    for data in (good[:-5], good + b"x", b"", good[:60] + bytes([good[60] ^ 1]) + good[61:]):
        archive.write_bytes(data)
        refused(lambda: read_folder(tmp_path), "checksum")
    archive.unlink()
    refused(lambda: read_folder(tmp_path), "no explanation.npz")
    archive.mkdir()
    refused(lambda: read_folder(tmp_path), "cannot be read")


class Danger:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("a pickle was run",))


def test_archives_that_are_no_archives(tmp_path: Path) -> None:
    for data in (pickle.dumps(Danger()), b"junk", b"", b"PK\x03\x04 and no more", npz(arrays())[:40]):
        write_folder(tmp_path, {"explanation.npz": data}, {})
        refused(lambda: read_folder(tmp_path), "damaged")
    single = tmp_path / "single.npy"
    np.save(single, np.zeros(3))
    write_folder(tmp_path, {"explanation.npz": single.read_bytes()}, {})
    refused(lambda: read_folder(tmp_path), "damaged")


def test_another_manifest_name(tmp_path: Path) -> None:
    write_folder(tmp_path, {"explanation.npz": npz({})}, {"x": 1}, "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["x"] == 1
    assert read_folder(tmp_path, "run.json")[1] == {}
