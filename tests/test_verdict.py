"""Verdicts: what is known to be right is believed, what is known to be nothing is not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import SIZE, planted, planted_picture, small

from vit_explain import Contrast, Explainer, verify
from vit_explain.cli import main
from vit_explain.errors import OptionError
from vit_explain.image import Preprocessing
from vit_explain.verdict import NOISES, elsewhere

PATCH = 7
HOW = Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3, "bilinear", crop_pct=1.0, crop_mode="squash")
PHOTO = Path(__file__).parents[1] / "examples" / "rocket.jpg"


@pytest.fixture(scope="module")
def knowing() -> Explainer:
    """A model that reads one patch."""
    return Explainer(planted(PATCH, block=-1), preprocessing=HOW)


def verdict_of(explainer: Explainer, method: str, **options: Any) -> tuple[str, dict[str, dict[str, Any]]]:
    pixels = planted_picture(PATCH)
    target = 1 if method not in ("random", "uniform", "rollout", "edges") else None
    found = verify(explainer, explainer.explain(pixels, method, target, **options), pixels).verdicts[0]
    return found["summary"], {one["test"]: one for one in found["findings"]}


@pytest.mark.parametrize("method", ("gae", "occlusion", "attn_lrp"))
def test_a_method_that_finds_the_patch_is_believed(knowing, method):
    summary, findings = verdict_of(knowing, method)
    assert findings["faithfulness"]["believable"] and findings["faithfulness"]["says"].startswith("Better than chance")
    assert findings["stability"]["value"] > 0.3
    assert list(findings) == ["faithfulness", "stability", "weights", "class", "agreement"]
    assert findings["class"]["believable"] == ("class" not in summary)


def test_a_default_device_changes_no_verdict(knowing):
    pixels = planted_picture(PATCH)
    explanation = knowing.explain(pixels, "gae", 1)
    expected = verify(knowing, explanation, pixels).verdicts
    with torch.device("meta"):
        assert verify(knowing, explanation, pixels).verdicts == expected


def test_noise_is_not_believed(knowing):
    summary, findings = verdict_of(knowing, "random")
    assert summary.startswith("Do not rely on this map: ")
    assert not findings["weights"]["believable"] and findings["weights"]["value"] == pytest.approx(1)
    assert not findings["stability"]["believable"]
    assert findings["class"]["says"].startswith("The method does not depend on a class")


def test_maps_put_elsewhere_are_the_map_far_away():
    maps = torch.arange(48.0).view(1, 6, 8)
    found = elsewhere(maps, 4, torch.Generator().manual_seed(0))
    assert len(found) == 4 and len({tuple(one.flatten().tolist()) for one in found}) == 4
    for one in found:
        assert sorted(one.flatten().tolist()) == maps.flatten().tolist()
        down, across = divmod(int(one.flatten().argmin()), 8)
        assert (one == maps.roll((down, across), (1, 2))).all()
        assert min(down, 6 - down) / 6 >= 0.25 or min(across, 8 - across) / 8 >= 0.25
    assert elsewhere(torch.ones(1, 1, 1), 4, torch.Generator()) == []


def test_a_map_that_noise_makes_even_is_unstable(knowing, monkeypatch):
    """Whichever draw it is: NaN is neither less nor more than a number."""
    pixels = planted_picture(PATCH)
    explanation = knowing.explain(pixels, "gae", 1)
    for even in range(NOISES):
        alike = iter([torch.tensor([torch.nan if draw == even else 0.9]) for draw in range(NOISES)])
        monkeypatch.setattr("vit_explain.verdict.rank_correlation", lambda *_, alike=alike: next(alike, torch.ones(1)))
        found = verify(knowing, explanation, pixels).verdicts[0]
        finding = next(one for one in found["findings"] if one["test"] == "stability")
        assert finding["value"] is None and not finding["believable"] and finding["says"].startswith("Unstable")
        assert json.dumps(found, allow_nan=False)


def test_edges_do_not_depend_on_the_model(knowing):
    summary, findings = verdict_of(knowing, "edges")
    assert "weights" in summary and not findings["weights"]["believable"]
    assert findings["stability"]["believable"]


def test_an_even_map_marks_nothing(knowing):
    summary, findings = verdict_of(knowing, "uniform")
    assert summary == "Do not rely on this map: evenness speaks against it." and list(findings) == ["evenness"]


def test_a_map_that_is_the_same_for_every_class_is_not_about_one():
    """Two classes that are one and the same."""
    model: Any = planted(PATCH, block=-1)
    with torch.no_grad():
        model.head.weight[0] = model.head.weight[1]
    _, findings = verdict_of(Explainer(model, preprocessing=HOW), "gae")
    assert not findings["class"]["believable"] and findings["class"]["value"] == pytest.approx(1)


def test_every_row_has_its_verdict_and_the_explanation_stays_what_it_was(knowing):
    photos = [np.random.default_rng(n).integers(0, 255, (40, 50, 3), np.uint8) for n in range(2)]
    explained = knowing.explain(photos, "gradient_rollout", [[0, 1], [1, 0]])
    found = verify(knowing, explained)
    assert explained.verdicts == [] and len(found.verdicts) == 4
    np.testing.assert_array_equal(found.relevance, explained.relevance)
    alone = verify(knowing, knowing.explain(photos[1], "gradient_rollout", 0))
    assert alone.verdicts[0]["summary"] == found.verdicts[3]["summary"] == found.row(3).verdicts[0]["summary"]
    said = found.as_dict()
    assert [row["verdict"] for row in said["rows"]] == found.verdicts and json.dumps(said, allow_nan=False)


def test_what_cannot_be_verified_is_refused(knowing):
    pixels = planted_picture(PATCH)

    def first(output: torch.Tensor) -> torch.Tensor:
        return output[:, 0]

    for target, message in ((first, "only maps of a class"), (Contrast(0, 1), "one class rather than another")):
        with pytest.raises(OptionError, match=message):
            verify(knowing, knowing.explain(pixels, "gae", target), pixels)
    with pytest.raises(OptionError, match="is a tensor"):
        verify(knowing, knowing.explain(pixels, "gae", 1))
    with pytest.raises(OptionError, match="cannot be verified with bundled"):
        verify("bundled", knowing.explain(pixels, "gae", 1), pixels)
    other = copy.deepcopy(knowing.model)
    with torch.no_grad():
        other.head.weight *= 0.8
    with pytest.raises(OptionError, match="answers otherwise than"):
        verify(Explainer(other, preprocessing=HOW), knowing.explain(pixels, "gae", 1), pixels)
    single: Any = small("class token")
    single.reset_classifier(1)
    alone = Explainer(single, preprocessing=HOW)
    with pytest.raises(OptionError, match="at least two classes"):
        verify(alone, alone.explain(pixels, "gae", 0), pixels)


def test_on_the_command_line(tmp_path, capsys):
    command = ["explain", str(PHOTO), "--method", "gae", "--verify", "--out", str(tmp_path)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "  Verdict  " in said and "  Faithfulness  " in said and "  Weights  " in said
    manifest = json.loads((tmp_path / "rocket" / "manifest.json").read_text())
    assert manifest["rows"][0]["verdict"]["summary"] in said
    assert main([*command[:-3], "--out", str(tmp_path / "plain")]) == 0
    heights = []
    for folder in (tmp_path / "plain", tmp_path):
        with Image.open(folder / "rocket" / "side_by_side.png") as picture:
            heights.append(picture.height)
    assert heights[0] < heights[1]  # the verdict stands above
