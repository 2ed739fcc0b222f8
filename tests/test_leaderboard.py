"""The leaderboard that comes with the package, and the method that it puts first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_models import SIZE, SMALL, lively, small
from timm.models.vision_transformer import VisionTransformer

from vit_explain import Explainer
from vit_explain.cli import main
from vit_explain.errors import OptionError
from vit_explain.leaderboard import leaderboard
from vit_explain.registry import METHODS

PIXELS = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(2))


def test_it_holds_every_fast_method_once():
    board = leaderboard()
    fast = {name for name, one in METHODS.items() if one.fast and one.family != "baselines"}
    assert sorted(board["order"]) == sorted(fast - {"attention_flow"})  # which takes a second of the processor
    standing = [board["standing"][name] for name in board["order"]]
    assert standing == sorted(standing, reverse=True) and board["images"] >= 300


def test_best_is_its_head():
    first = leaderboard()["order"][0]
    explainer = Explainer(small("class token"))
    found = explainer.explain(PIXELS, "best")
    assert found.method == first == explainer.best(inputs=PIXELS).name
    assert (found.relevance == explainer.explain(PIXELS, first).relevance).all()
    assert (explainer.attribute(PIXELS, method="best").numpy() == found.relevance).all()


def test_best_is_one_that_can_explain_the_model(monkeypatch):
    """Without a class, one that needs none; where attention is not read, one that needs none."""
    order = leaderboard()["order"]
    headless = Explainer(lively(VisionTransformer(**SMALL | {"num_classes": 0})))
    found = headless.best(inputs=PIXELS)
    assert found.name == next(name for name in order if not METHODS[name].class_specific)
    assert headless.best(lambda output: output.sum(1), PIXELS).name == order[0]
    monkeypatch.setitem(leaderboard(), "order", [])
    with pytest.raises(OptionError, match="name one"):
        headless.best(inputs=PIXELS)


def test_the_command_line_says_which_it_is(tmp_path, capsys):
    photo = Path(__file__).parents[1] / "examples" / "cat.jpg"
    assert main(["explain", str(photo), "--method", "best", "--out", str(tmp_path)]) == 0
    first = leaderboard()["order"][0]
    assert f"Method: {first}, number 1 of the leaderboard" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "cat" / "manifest.json").read_text())
    assert manifest["method"] == first
