"""Classes of torch.hub repositories, by stand-ins that are built alike."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hub_models import Hub, LinearClassifier
from small_models import CLASSES, SIZE, SMALL, lively
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vit_explain import Explainer
from vit_explain.errors import ModelError
from vit_explain.family import family_of


def test_any_size_that_positions_are_interpolated_to():
    explainer = Explainer(lively(Hub(tells=True)))
    for size, grid in (((40, 40), (5, 5)), ((29, 50), (3, 6))):
        found = explainer.explain(torch.randn(1, 3, *size))
        assert found.relevance.shape == (1, *grid)
    with pytest.raises(ModelError, match="patches of 8x8 pixels"):
        explainer.explain(torch.randn(1, 3, 7, 40))


def test_xformers_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(sys.modules[Hub.__module__], "XFORMERS_AVAILABLE", True, raising=False)
    with pytest.raises(ModelError, match="XFORMERS_DISABLED=1"):
        Explainer(lively(Hub())).explain(torch.randn(1, 3, *SIZE))


def test_a_classifier_of_several_blocks_is_refused():
    model = LinearClassifier(Hub(), CLASSES)
    model.linear_head = nn.Linear(5 * 24, CLASSES)
    with pytest.raises(ModelError, match="layers=1"):
        Explainer(lively(model)).explain(torch.randn(1, 3, *SIZE))


class Distilled(VisionTransformer):
    """A subclass of timm's that adds a second token by itself, as DeiT's repository has it."""

    def __init__(self) -> None:
        super().__init__(**SMALL)
        self.dist_token = nn.Parameter(torch.zeros(1, 1, 24))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, 24))
        self.head_dist = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        ahead = torch.cat([self.cls_token, self.dist_token], 1).expand(len(x), -1, -1)
        x = self.norm(self.blocks(torch.cat([ahead, x], 1) + self.pos_embed))
        return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2


class Pooled(VisionTransformer):
    """A subclass of timm's whose ``global_pool`` is a flag, as MAE's repository has it."""

    def __init__(self, pooled: bool) -> None:
        super().__init__(**SMALL)
        self.global_pool: Any = pooled

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], 1) + self.pos_embed
        x = self.blocks(x)
        return self.head(self.norm(x[:, 1:].mean(1) if self.global_pool else x[:, 0]))


@pytest.mark.parametrize(
    ("build", "prefix", "tokens", "patches"),
    [
        (Distilled, 2, (0, 1), False),
        (lambda: Pooled(True), 1, (), True),
        (lambda: Pooled(False), 1, (0,), False),
        (lambda: LinearClassifier(Hub(registers=2), CLASSES), 3, (0,), True),
    ],
)
def test_what_the_head_reads_is_asked_of_the_head(build, prefix, tokens, patches):
    model = lively(build())
    anatomy = family_of(model).anatomy(model, (3, *SIZE))
    assert anatomy.prefix == prefix
    assert (anatomy.readout.tokens, anatomy.readout.patches) == (tokens, patches)
    explainer, pixels = Explainer(model), torch.randn(2, 3, *SIZE)
    for method in ("rollout", "gradient_rollout", "logit_lens", "attn_lrp"):
        found = explainer.attribute(pixels, None, method)
        assert found.isfinite().all() and (found.std((1, 2)) > 0).all()


def test_subclasses_of_timms_that_change_nothing_stay_timms():
    class Own(VisionTransformer):
        pass

    assert type(family_of(Own(**SMALL))).__name__ == "TimmPlain"
