"""The command line: what it writes, what it says, and how it fails: one line, an exit code, nothing half-done."""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_explain import __version__, explainer, list_methods
from vit_explain.catalogue import passes
from vit_explain.cli import main, said_in_one_line
from vit_explain.commands import explain as explain_command
from vit_explain.commands.original import original
from vit_explain.registry import FAMILIES, Method

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
FILES = ["explanation.npz", "manifest.json", "overlay.png", "side_by_side.png"]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def one_bundled_model() -> Iterator[None]:
    """Loading it takes longer than explaining a photo, and explaining leaves it as it was."""
    load = explainer.load_model
    bundled = functools.cache(lambda: load("bundled"))

    def load_once(name: str, *, checkpoint: Any = None, device: Any = "cpu") -> Any:
        plain = (name, checkpoint, device) == ("bundled", None, "cpu")
        return bundled() if plain else load(name, checkpoint=checkpoint, device=device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explainer, "load_model", load_once)
        yield


@pytest.fixture
def photo(workplace: Path) -> str:
    with Image.open(EXAMPLES / "temple.jpg") as image:
        image.resize((120, 90)).save(workplace / "photo.jpg")
    return "photo.jpg"


def names(folder: str | Path) -> list[str]:
    return sorted(file.name for file in Path(folder).iterdir())


def run_apart(arguments: Sequence[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``python -m vit_explain`` as a program of its own."""
    command = [sys.executable, "-m", "vit_explain", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})


class TestExplain:
    def test_writes_four_files_and_says_what_it_found(self, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["explain", photo]) == 0
        assert names("vit-explain-out/photo") == FILES
        with Image.open("vit-explain-out/photo/overlay.png") as overlay:
            assert overlay.size == (120, 90)
        said, complaints = capsys.readouterr()
        assert "Model: bundled" in said and "--model deit_tiny_patch16_224" in said
        assert "church" in said and "%" in said  # a likeliest class, with its probability
        assert "Relevance" in said and "rollout" in said and "vit-explain-out/photo" in said
        assert complaints == ""

    def test_a_target_means_gradient_rollout(self, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["explain", photo, "--target", "golf ball", "--head-fusion", "max", "--discard-ratio", "0.9"]) == 0
        manifest = json.loads(Path("vit-explain-out/photo/manifest.json").read_text())
        assert manifest["method"] == "gradient_rollout"
        assert manifest["options"] == {"head_fusion": "max", "discard_ratio": 0.9, "legacy": False}
        assert manifest["rows"][0]["target"] == "golf ball"
        assert "golf ball" in capsys.readouterr().out

    def test_several_targets_are_several_rows(self, photo: str) -> None:
        assert main(["explain", photo, "--target", "church", "--target", "3"]) == 0
        with np.load("vit-explain-out/photo/explanation.npz") as arrays:
            assert arrays["relevance"].shape == (2, 16, 16)
        assert {"overlay-0.png", "overlay-1.png"} <= set(names("vit-explain-out/photo"))

    def test_against_is_a_contrast(self, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["explain", photo, "--target", "church", "--against", "gas pump"]) == 0
        assert "church rather than gas pump" in capsys.readouterr().out

    def test_the_best_class_may_be_contrasted_with_the_next(
        self, photo: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first, second, _ = explainer.Explainer("bundled").explain(photo).top()[:3]
        assert main(["explain", photo, "--target", "top1", "--against", "top2"]) == 0
        assert f"{first[0]} rather than {second[0]}" in capsys.readouterr().out

    def test_where_nothing_is_to_be_contrasted_other_photos_go_on(
        self, photo: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cat = str(EXAMPLES / "cat.jpg")
        best = [explainer.Explainer("bundled").explain(one).top()[0][0] for one in (photo, cat)]
        assert best[0] != best[1]
        assert main(["explain", photo, cat, "--target", "top1", "--against", best[0]]) == 1
        said = capsys.readouterr()
        assert f"{photo}: a contrast needs two classes" in said.err and f"{best[1]} rather than" in said.out

    def test_layer_head_and_other_options(self, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
        asked = ["--method", "attention", "--layer", "-2", "--head", "1", "-O", "query=3,4", "--json"]
        assert main(["explain", photo, *asked]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["explanations"][0]["options"] == {"layer": -2, "head": 1, "query": [3, 4]}

    def test_a_query_alone_is_a_token(self, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["explain", photo, "--method", "attention", "-O", "query=3", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["explanations"][0]["options"]["query"] == 3

    @pytest.mark.parametrize("method", list_methods(), ids=lambda method: method.name)
    def test_what_an_option_may_be_is_read_back(self, method: Method) -> None:
        for option in method.options.values():
            for value in (option.default, *option.choices):
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                assert option.parse(text, method.name) == value

    def test_json_is_the_only_output(self, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["explain", photo, "--target", "top1", "--json"]) == 0
        said, complaints = capsys.readouterr()
        (found,) = json.loads(said)["explanations"]
        assert found["image"] == photo and found["model"] == "bundled"
        assert sorted(Path(file).name for file in found["files"]) == FILES
        assert all(Path(file).is_file() for file in found["files"])
        assert 0 < found["rows"][0]["top"][0]["probability"] <= 1
        assert complaints == ""

    def test_labels_from_a_file(self, photo: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (workplace / "names.txt").write_text("\n".join(f"name {n}" for n in range(10)))
        assert main(["explain", photo, "--labels", "names.txt", "--target", "name 4"]) == 0
        assert "name 4" in capsys.readouterr().out

    def test_looks_are_chosen(self, photo: str) -> None:
        pictures = []
        for look in ([], ["--colormap", "jet"], ["--opacity", "0.2"]):
            assert main(["explain", photo, *look]) == 0
            pictures.append(Path("vit-explain-out/photo/overlay.png").read_bytes())
        assert len(set(pictures)) == 3


class TestManyImages:
    def test_a_bad_one_is_reported_and_passed_over(
        self, photo: str, workplace: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (workplace / "bad.jpg").write_text("no picture")
        (workplace / "last.png").write_bytes(Path(photo).read_bytes())
        assert main(["explain", photo, "bad.jpg", "last.png", "--out", "maps"]) == 1
        assert names("maps") == ["last", "photo"]
        assert names("maps/last") == FILES
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("vit-explain: ") and "bad.jpg" in line

    def test_json_lists_what_failed(self, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["explain", "absent.jpg", photo, "--json"]) == 1
        document = json.loads(capsys.readouterr().out)
        assert [done["image"] for done in document["explanations"]] == [photo]
        assert [failed["image"] for failed in document["failed"]] == ["absent.jpg"]

    def test_all_bad_is_an_error(self, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["explain", "absent.jpg", "gone.jpg", "--json"]) == 2
        said, complaints = capsys.readouterr()
        assert said == "" and len(complaints.splitlines()) == 2
        assert names(workplace) == []

    def test_files_of_one_name_get_numbers(self) -> None:
        images = ["a/x.jpg", "b/x.png", "x-2.jpg", "X.jpg", ".hidden", "dots.in.name.jpg"]
        found = explain_command.folders(images, Path("out"))
        assert [folder.name for folder in found] == ["x", "x-2", "x-2-2", "X-3", "hidden", "dots.in.name"]


def empty(path: Path) -> None:
    path.write_bytes(b"")


def directory(path: Path) -> None:
    path.mkdir()


def text(path: Path) -> None:
    path.write_text("this is not a picture\n" * 50)


def truncated(path: Path) -> None:
    path.write_bytes((EXAMPLES / "temple.jpg").read_bytes()[:20000])


def only_a_header(path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    path.write_bytes(file.getvalue()[:40])


def missing(path: Path) -> None:
    assert not path.exists()


BAD_IMAGES = [missing, empty, directory, text, truncated, only_a_header]
BAD_OPTIONS = {
    "--method rolout": "rollout",
    "--method attention --target church": "attention",
    "--model deit_tiny_patch16_225": "deit_tiny_patch16_224",
    "--model resnet50": "resnet50",
    "--model deit_tiny_patch16_224": "deit_tiny_patch16_224",  # real, but there is no way to its weights
    "--checkpoint absent.safetensors": "absent.safetensors",
    "--checkpoint photo.jpg": "photo.jpg",
    "--target chruch": "church",
    "--target 10": "0 to 9",
    "--target -1": "0 to 9",
    "--target top0": "top0",
    "--target church --against church": "church",
    "--against church": "--target",
    "--head-fusion median": "'mean'",
    "--discard-ratio 1.0": "[0, 1)",
    "--discard-ratio -0.1": "[0, 1)",
    "--discard-ratio nan": "[0, 1)",
    "--discard-ratio much": "[0, 1)",
    "--layer 0": "layer",
    "--method attention --layer 99": "0 to 7",
    "--method attention --head 6": "0 to 5",
    "--method attention --head first": "mean",
    "--method attention -O query=16,0": "16x16",
    "-O headfusion=max": "head_fusion",
    "-O legacy": "key=value",
    "-O legacy=perhaps": "legacy",
    "--colormap rainbows": "rainbow",
    "--opacity 2": "opacity",
    "--max-pixels 100": "pixels",
    "--max-pixels 0": "max-pixels",
    "--labels absent.txt": "absent.txt",
    "--labels photo.jpg": "photo.jpg",
    "--labels two.txt": "10",
    "--device warp": "warp",
    "--device cuda:99": "cuda:99",
    "--out photo.jpg": "photo.jpg",
    "--out photo.jpg/below": "photo.jpg",
    "--no-such-option": "no-such-option",
}


class TestBadInput:
    @pytest.mark.parametrize("make", BAD_IMAGES)
    @pytest.mark.parametrize("command", ["explain", "sweep"])
    def test_images(
        self, make: Callable[[Path], None], command: str, workplace: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make(workplace / "bad.jpg")
        before = names(workplace)
        assert main([command, "bad.jpg"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("vit-explain: ") and "bad.jpg" in line
        assert names(workplace) == before

    @pytest.mark.parametrize("options", BAD_OPTIONS)
    def test_options(self, options: str, photo: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (workplace / "two.txt").write_text("one\ntwo\n")
        before = names(workplace)
        assert main(["explain", photo, *options.split()]) == 2
        said, complaints = capsys.readouterr()
        (line,) = complaints.splitlines()
        assert line.startswith("vit-explain: ") and BAD_OPTIONS[options] in line
        assert "Traceback" not in said + complaints
        assert names(workplace) == before

    def test_a_checkpoint_that_would_run_code(
        self, photo: str, workplace: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import pickle

        class Evil:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return os.mkdir, ("ran",)

        (workplace / "evil.pth").write_bytes(pickle.dumps(Evil()))
        before = names(workplace)
        assert main(["explain", photo, "--checkpoint", "evil.pth"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "evil.pth" in line
        assert names(workplace) == before

    @pytest.mark.parametrize("words", [["explain"], ["explian", "x.jpg"], ["sweep"], ["sweep", "a.jpg", "b.jpg"]])
    def test_commands(self, words: list[str], workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("vit-explain: ") and "--help" in line

    def test_an_interruption(
        self, photo: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from vit_explain import Explainer

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Explainer, "explain", interrupted)
        assert main(["explain", photo]) == 130
        assert capsys.readouterr().err == "vit-explain: stopped\n"


class TestOptionsSaidTwice:
    @pytest.mark.parametrize(
        "words",
        (
            ["explain", "-O", "head_fusion=max", "--head-fusion", "min"],
            ["explain", "-O", "head_fusion=max", "-O", "head-fusion=min"],
            ["sweep", "-O", "discard_ratio=0.5"],
        ),
    )
    def test_are_refused(self, photo: str, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
        assert main([words[0], photo, *words[1:], "--out", "maps"]) == 2
        assert "is given twice; leave -O" in capsys.readouterr().err and not Path("maps").exists()


class TestStreams:
    def test_names_that_the_output_cannot_encode(self, photo: str) -> None:
        Path("\u732b.jpg").write_bytes(Path(photo).read_bytes())
        for encoding in ("ascii", "cp1252"):
            found = run_apart(["explain", "\u732b.jpg", photo, "--json"], {"PYTHONIOENCODING": encoding})
            assert found.returncode == 0 and not found.stderr
            assert json.loads(found.stdout)["explanations"][0]["images"][0]["source"] == "\u732b.jpg"
            found = run_apart(["explain", "\u732b.jpg", photo], {"PYTHONIOENCODING": encoding})
            assert found.returncode == 0 and not found.stderr and "\\u732b.jpg" in found.stdout

    def test_a_reader_that_has_seen_enough_stops_no_work(self, photo: str) -> None:
        command = [sys.executable, "-m", "vit_explain", "explain", photo, "--out", "heard"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 0 and names("heard/photo") == FILES
        with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 0

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
    def test_an_output_that_is_full(self) -> None:
        with open("/dev/full", "w") as full:
            found = subprocess.run(
                [sys.executable, "-m", "vit_explain", "methods"], stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert found.returncode == 2
        assert found.stderr == "vit-explain: standard output cannot be written to: No space left on device\n"

    def test_a_device_without_numbers(self, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["explain", photo, "--device", "meta"]) == 2
        assert "device 'meta' cannot be used here" in capsys.readouterr().err


class TestSweep:
    def test_a_grid_and_an_animation(self, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
        asked = ["--target", "church", "--head-fusions", "mean,min", "--discard-ratios", "0,0.5,0.9", "--width", "160"]
        assert main(["sweep", photo, *asked, "--out", "maps"]) == 0
        assert names("maps/photo-sweep") == ["manifest.json", "maps.png", "sweep.gif", "sweep.png"]
        with Image.open("maps/photo-sweep/sweep.png") as grid, Image.open("maps/photo-sweep/maps.png") as maps:
            assert grid.width > 3 * 160 and grid.height > 2 * 120
            assert maps.size == grid.size
        with Image.open("maps/photo-sweep/sweep.gif") as animation:
            assert getattr(animation, "n_frames", 1) == 3
        manifest = json.loads(Path("maps/photo-sweep/manifest.json").read_text())
        assert [record["options"]["discard_ratio"] for record in manifest["explanations"]] == [0, 0.5, 0.9] * 2
        said, complaints = capsys.readouterr()
        assert "church" in said and complaints == ""

    @pytest.mark.parametrize(
        ("options", "hint"),
        [
            ("--head-fusions median", "mean"),
            ("--discard-ratios 0,1", "[0, 1)"),
            ("--discard-ratios ,", "--discard-ratios"),
            ("--method attention", "head_fusion"),
            ("--target top2", "one class"),
            ("--target chruch", "church"),
            ("--width 3", "width"),
        ],
    )
    def test_bad_options(
        self, options: str, hint: str, photo: str, workplace: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["sweep", photo, *options.split()]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert hint in line
        assert names(workplace) == [photo]


class TestLists:
    def test_methods(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["methods"]) == 0
        said = capsys.readouterr().out
        lines = said.splitlines()
        for family in FAMILIES:
            assert family in lines
        for method in list_methods():
            (line,) = [line for line in lines if line.split()[0:1] == [method.name] and method.summary in line]
            assert passes(method) in line and lines.index(method.family) < lines.index(line)

    def test_methods_by_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["methods", "rollout", "cp_lrp"]) == 0
        said = capsys.readouterr().out
        for method in list_methods():
            assert (method.means in said) == (method.name in ("rollout", "cp_lrp"))
            if method.means in said:
                assert method.does_not_mean in said and method.paper in said
                assert all(f"{option} = " in said for option in method.options)
        assert "patented" in said and "not legal advice" in said
        assert main(["methods", "rolout"]) == 2
        assert "near matches: rollout" in capsys.readouterr().err

    def test_methods_as_a_page(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["methods", "--markdown"]) == 0
        assert capsys.readouterr().out == (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
        assert main(["methods", "--markdown", "rollout"]) == 2

    def test_methods_as_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["methods", "--json"]) == 0
        found = {method["name"]: method for method in json.loads(capsys.readouterr().out)}
        assert found.keys() == {method.name for method in list_methods()}
        assert found["rollout"]["backwards"] == 0 and not found["rollout"]["class_specific"]
        assert found["gradient_rollout"]["options"]["discard_ratio"]["default"] == 0.0
        assert all(method["means"] and method["does_not_mean"] and method["family"] for method in found.values())
        assert main(["methods", "rise", "--json"]) == 0
        assert [method["name"] for method in json.loads(capsys.readouterr().out)] == ["rise"]

    def test_models(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["models"]) == 0
        everything = capsys.readouterr().out.splitlines()
        assert everything[0].startswith("# ") and everything[0].endswith(": every method")
        assert everything[1] == "bundled" and "deit_tiny_patch16_224" in everything
        assert main(["models", "deit3"]) == 0
        some = capsys.readouterr().out.splitlines()
        assert some[1:] == [name for name in everything if "deit3" in name]

    def test_models_for_a_method(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["models", "s*in*tiny*", "--method", "rollout"]) == 0
        said = capsys.readouterr().out
        assert "swin_tiny_patch4_window7_224" in said and ": rollout, gradient_rollout, gae, attention" in said
        assert main(["models", "swin_tiny*", "--method", "alti"]) == 2
        assert "that alti is defined for" in capsys.readouterr().err
        assert main(["models", "edgenext*", "--method", "gradcam", "--json"]) == 0
        assert {one["methods"] for one in json.loads(capsys.readouterr().out)} == {"methods that read no attention"}
        assert main(["models", "edgenext*", "--method", "rollout"]) == 2

    def test_no_such_model(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["models", "diet_tiny_patch16_224"]) == 2
        said, complaints = capsys.readouterr()
        assert said == "" and "deit_tiny" in complaints and len(complaints.splitlines()) == 1

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"vit-explain {__version__}\n"

    def test_nothing_asked_is_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 0
        nothing = capsys.readouterr().out
        assert main(["--help"]) == 0
        assert nothing == capsys.readouterr().out
        assert all(command in nothing for command in ("explain", "sweep", "methods", "models"))


class TestOriginal:
    """``python -m vit_explain --image_path ...``, as the original's README has it."""

    def test_rollout(self, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert original(["--image_path", photo]) == 0
        assert names(".") == ["attention_rollout_0.900_max.json", "attention_rollout_0.900_max.png", photo]
        said = capsys.readouterr().out
        assert "Using CPU" in said and "Doing Attention Rollout" in said and "bundled" in said

    def test_gradient_rollout(self, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
        flags = ["--head_fusion", "min", "--discard_ratio", "0.5", "--category_index", "4"]
        assert original(["--image_path", photo, *flags]) == 0
        with Image.open("grad_rollout_4_0.500_min.png") as picture:
            assert picture.size == (120, 90)
        said = capsys.readouterr().out
        assert "Doing Gradient Attention Rollout" in said and "church" in said

    def test_legacy_arithmetic(self, photo: str) -> None:
        pictures = []
        for flags in ([], ["--legacy"]):
            assert original(["--image_path", photo, "--category_index=4", *flags]) == 0
            pictures.append(Path("grad_rollout_4_0.900_max.png").read_bytes())
        assert pictures[0] != pictures[1]

    @pytest.mark.parametrize(
        ("flags", "hint"),
        [
            (["--image_path", "absent.jpg"], "absent.jpg"),
            (["--image_path", "photo.jpg", "--head_fusion", "median"], "mean"),
            (["--image_path", "photo.jpg", "--discard_ratio", "1"], "[0, 1)"),
            (["--image_path", "photo.jpg", "--discard_ratio", "much"], "discard_ratio"),
            (["--head_fusion", "max"], "--image_path"),
            (["--image_path", "photo.jpg", "--category_index", "243"], "deit_tiny_patch16_224"),
        ],
    )
    def test_bad_input(self, flags: list[str], hint: str, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert said_in_one_line(lambda: original(flags)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("vit-explain: ") and hint in line
        assert names(".") == [photo]


class TestAsPrograms:
    def test_explain(self, photo: str) -> None:
        ended = run_apart(["explain", photo, "--target", "top1", "--json"])
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout)["explanations"][0]["method"] == "gradient_rollout"
        assert ended.stderr == ""

    def test_an_error(self) -> None:
        ended = run_apart(["explain", "absent.jpg"])
        assert ended.returncode == 2
        assert len(ended.stderr.splitlines()) == 1

    def test_the_original_flags(self, photo: str) -> None:
        ended = run_apart(["--image_path", photo, "--head_fusion", "max", "--discard_ratio", "0.9"])
        assert ended.returncode == 0, ended.stderr
        assert Path("attention_rollout_0.900_max.png").is_file()

    def test_a_reader_that_has_seen_enough(self) -> None:
        command = f"'{sys.executable}' -m vit_explain models | head -n 2"
        ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert ended.stdout.endswith("\nbundled\n") and ended.stderr == ""
