"""Every name the package offers, at full depth and size, without weights: what is captured fits what the family says."""

from __future__ import annotations

import pytest
import timm
import torch

from vit_explain import list_models
from vit_explain.capture import look, match
from vit_explain.family import family_of


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_models() if name != "bundled"])
def test_every_name_is_captured_completely(name):
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False).eval()
        family = family_of(model)
        size = family.preprocessing(model).size
        pixels = torch.empty(1, 3, *size)
        with torch.no_grad():
            layers, output = look(model, pixels, gradient=False, values=False)
    anatomy = family.anatomy(model, (3, *size))
    blocks, pool = match(layers, anatomy)
    assert len(blocks) == len(model.blocks)
    assert (pool is not None) == anatomy.readout.attention
    assert anatomy.covers[0] <= size[0] and anatomy.covers[1] <= size[1]
    assert family.classes(model) in (0, family.logits(output).shape[1])
