"""Results on disk. A file appears whole or not at all; the manifest, which says what belongs together, comes last."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import OutputError

MANIFEST = "manifest.json"
ARCHIVE = "explanation.npz"


def write_folder(
    folder: str | os.PathLike[str],
    files: Mapping[str, bytes],
    manifest: Mapping[str, Any],
    manifest_name: str = MANIFEST,
) -> list[Path]:
    """Write named files and then the manifest into a folder, which is made if missing; returns their paths.

    The manifest is JSON in UTF-8, with ``files`` added: name, bytes and sha256 of each. Everything is written under
    temporary names in the same folder first and then renamed, so a full disk leaves earlier results as they were. If
    renaming itself stops midway, each file is still whole, old or new, and the checksums tell which do not belong to
    the manifest. Files that an earlier manifest in the folder lists, and this one does not, are removed: they would
    stand beside what they do not belong to. Raises OutputError, and leaves no temporary file behind.
    """
    target = Path(folder)
    listed = [{"name": n, "bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()]
    contents = {**files, manifest_name: _json({**manifest, "files": listed})}
    if len(contents) != len(files) + 1:
        raise OutputError(f"{manifest_name!r} is the manifest's own name; name the file something else")
    for name in contents:
        if not _plain(name):
            raise OutputError(f"{name!r} is not a plain file name; leave out folders and slashes")
    temporary: dict[Path, Path] = {}
    earlier = _listed(target / manifest_name) - set(contents)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            # Not made from the name, which may already be as long as a name can be.
            part = target / f".{secrets.token_hex(8)}.part"
            temporary[part] = target / name
            part.write_bytes(data)
        for part, final in temporary.items():
            os.replace(part, final)
        for name in earlier:
            (target / name).unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OutputError(f"cannot write to {str(target)!r}: {reason}; choose another folder or make room") from None
    finally:
        for part in temporary:
            with contextlib.suppress(OSError, ValueError):
                part.unlink(missing_ok=True)
    return list(temporary.values())


def _listed(manifest: Path) -> set[str]:
    """The plain names of files that a manifest lists; none where there is no manifest."""
    try:
        names = [entry["name"] for entry in json.loads(manifest.read_bytes())["files"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return set()
    return {name for name in names if isinstance(name, str) and _plain(name)}


def _plain(name: str) -> bool:
    return name not in ("", ".", "..") and not any(c in name for c in "/\\\0")


def _json(manifest: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            return text.encode("utf-8")
        except UnicodeEncodeError:  # file names that are not valid UTF-8, which only the escaped form can carry
            return (json.dumps(manifest, indent=2, allow_nan=False) + "\n").encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise OutputError(f"the manifest must be plain JSON without NaN or infinity ({reason})") from None


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as the bytes of a compressed ``.npz`` file; equal arrays give equal bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            array = np.asarray(array)
            if array.dtype.hasobject:
                raise OutputError(f"array {name!r} holds Python objects; store numbers or text")
            member_info = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, unlike what np.savez may write
            member_info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member_info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return file.getvalue()


def read_folder(
    folder: str | os.PathLike[str], manifest_name: str = MANIFEST
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The manifest, and the arrays of ``explanation.npz``, whose size and sha256 must be those in the manifest.

    Other files are not looked at. Nothing in the folder can run code. Raises OutputError where something is missing or
    damaged.
    """
    source = Path(folder)
    manifest = _manifest(source / manifest_name)
    files = manifest.get("files")
    entry = next((f for f in files if isinstance(f, dict) and f.get("name") == ARCHIVE), None) if files else None
    if entry is None:
        raise OutputError(f"{str(source / manifest_name)!r} lists no {ARCHIVE}; give the folder of a saved explanation")
    path = source / ARCHIVE
    data = _read(path)
    if len(data) != entry.get("bytes") or hashlib.sha256(data).hexdigest() != entry.get("sha256"):
        raise OutputError(f"{str(path)!r} does not match its checksum in {manifest_name}; save the explanation again")
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("one array, not an archive")
        with loaded:
            return manifest, {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, KeyError, MemoryError, NotImplementedError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise OutputError(f"{str(path)!r} is damaged ({reason}); save the explanation again") from None


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{str(path)!r} is damaged: it is not JSON; save the explanation again") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files", []), list):
        raise OutputError(f"{str(path)!r} is not the manifest of a saved explanation; give the folder of one")
    return manifest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise OutputError(
            f"there is no {path.name} in {str(path.parent)!r}; give the folder of a completely saved explanation"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OutputError(f"{str(path)!r} cannot be read: {reason}; give the folder of a saved explanation") from None
