"""Every name the package offers, at full depth and size, without weights: what is captured fits the family's words."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from vit_explain import list_models
from vit_explain.capture import look, match
from vit_explain.family import family_of
from vit_explain.types import Layer


def captured(name: str) -> tuple[Any, tuple[int, int], list[Layer], Any]:
    """The model without weights, its input size, the attention calls that were seen, and its output."""
    with torch.device("meta"), torch.no_grad():
        model = timm.create_model(name, pretrained=False).eval()
        size = family_of(model).preprocessing(model).size
        seen = look(model, torch.empty(1, 3, *size), {"attention"})
    return model, size, seen.layers, seen.output


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_models() if "/" not in name and name != "bundled"])
def test_every_name_is_captured_completely(name):
    model, size, layers, output = captured(name)
    family = family_of(model)
    anatomy = family.anatomy(model, (3, *size))
    if anatomy.plan is not None and not anatomy.plan.places:
        return  # no method reads its attention
    if anatomy.plan is not None:
        assert len(match(layers, anatomy)[0]) == len([place for place in anatomy.plan.places if place is not None])
        return
    blocks, pool = match(layers, anatomy)
    assert len(blocks) == len(anatomy.blocks)
    assert (pool is not None) == anatomy.readout.attention
    assert anatomy.covers[0] <= size[0] and anatomy.covers[1] <= size[1]
    assert family.classes(model) in (0, family.logits(output).shape[1])
