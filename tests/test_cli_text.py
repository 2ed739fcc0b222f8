"""``--text``: prompts on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import Words, pairs
from PIL import Image

from vit_explain.arguments import read_prompts
from vit_explain.cli import main
from vit_explain.errors import TargetError
from vit_explain.targets import Contrast

PARROT, CAT = "a photo of a parrot", "a photo of a cat"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photo, and an image-text model whose tokenizer is a small one."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda source: Words(12, True))
    pairs("CLIP").save_pretrained("clip")
    Image.radial_gradient("L").convert("RGB").resize((60, 50)).save("photo.png")
    return tmp_path


def manifest(place: Path) -> dict[str, Any]:
    return json.loads((place / "vit-explain-out" / "photo" / "manifest.json").read_text())


def targets(place: Path) -> list[str]:
    return [row["target"] for row in manifest(place)["rows"]]


def explained(*arguments: str) -> int:
    return main(["explain", "photo.png", "--model", "./clip", *arguments])


def test_one_text(place, capsys):
    assert explained("--text", PARROT) == 0
    assert targets(place) == [PARROT] and manifest(place)["method"] == "gradient_rollout"
    said = capsys.readouterr().out
    assert f"{PARROT}: score" in said and "100.0%" not in said


def test_several_texts_are_each_explained(place):
    assert explained("--text", PARROT, "--text", CAT) == 0
    assert targets(place) == [PARROT, CAT] and manifest(place)["labels"] == [PARROT, CAT]


def test_one_text_rather_than_another(place):
    assert explained("--text", PARROT, "--against", CAT) == 0
    assert targets(place) == [f"{PARROT} rather than {CAT}"]


def test_the_likeliest_of_several_texts(place):
    assert explained("--text", PARROT, "--text", CAT, "--target", "top1", "--method", "gradcam") == 0
    assert targets(place)[0] in (PARROT, CAT)


def test_methods_without_a_class(place):
    assert explained("--text", PARROT, "--method", "rollout") == 0
    assert targets(place) == [""]


def test_compare(place):
    assert main(["compare", "photo.png", "--model", "clip", "--text", PARROT, "--methods", "rollout,gradcam"]) == 0


def test_refusals(place, capsys):
    for arguments, words in (
        (["--text", ""], "prompts that are not empty"),
        (["--text", PARROT, "--text", CAT, "--against", "x"], "exactly one --text"),
        ([], "(--text)"),
    ):
        assert explained(*arguments) == 2
        complaint = capsys.readouterr().err
        assert words in complaint and complaint.count("\n") == 1
    assert main(["explain", "photo.png", "--text", PARROT]) == 2
    assert "does not compare pictures with texts" in capsys.readouterr().err


def test_what_flags_mean():
    assert read_prompts([], ["3"], None) == (None, "3")
    assert read_prompts([], [], None) == (None, None)
    assert read_prompts(["a"], [], None) == (["a"], 0)
    assert read_prompts(["a", "b"], [], None) == (["a", "b"], [0, 1])
    assert read_prompts(["a"], [], "b") == (["a", "b"], Contrast(0, 1))
    assert read_prompts(["a", "b"], ["a"], "b") == (["a", "b"], Contrast("a", "b"))
    with pytest.raises(TargetError):
        read_prompts(["a", "b"], [], "c")
