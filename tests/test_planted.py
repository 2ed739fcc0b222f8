"""Evidence planted in a blank picture: whatever a family's attention is like, the one patch that says anything lights.

Models have random weights, as at the start of a training, and a random head. What a map of the picture has that a map
of the blank one lacks can only come from that patch; it must be largest there. Cells are of the coarsest grid.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from test_layouts import NAMED, SIDE, SMALL, awake
from torch import Tensor, nn

from vit_explain import Explainer
from vit_explain.registry import find

# Ordinary blocks have a planted model of their own, in ``test_explainer``.
NAMES = [*SMALL, *(name for name in NAMED if "naflex" not in name)]
TEXTURES = 8  # over which the difference is averaged
METHODS = ("rollout", "gae", "input_x_gradient")
# Their tokens are patches that do not overlap, and nothing but attention carries them about. In other families
# convolutions and means over moved windows carry a patch to its neighbours.
EXACT = {"swin", "swin v2", "hiera", "cait_xxs24_224", "samvit_base_patch16_224", "tnt_s_patch16_224"}


@functools.cache
def explainer_of(name: str) -> Explainer:
    torch.manual_seed(0)
    model: Any = awake(SMALL[name][0]()) if name in SMALL else timm.create_model(name, **NAMED[name])
    explainer = Explainer(model.eval())
    for part in model.modules():
        # Some begin with zeros, and say nothing of any picture.
        if isinstance(part, nn.Linear) and part.out_features == explainer.family.classes(model):
            nn.init.normal_(part.weight)
    return explainer


def marked(blank: Tensor, cell: tuple[int, int], side: tuple[int, int]) -> Tensor:
    """As many copies of the blank picture as there are textures, each with its texture on the cell."""
    pictures = blank.repeat(TEXTURES, 1, 1, 1)
    (row, column), (down, across) = cell, side
    place = pictures[..., row * down : (row + 1) * down, column * across : (column + 1) * across]
    place += torch.randn(place.shape, generator=torch.Generator().manual_seed(1))
    return pictures


@pytest.mark.parametrize("method", (*METHODS, "gradient_rollout"))
@pytest.mark.parametrize("name", NAMES)
def test_the_patch_that_says_anything_lights(name, method):
    if method == "gradient_rollout" and name not in SMALL:
        pytest.skip("rows are made to sum to one, so where gradients hardly differ so do maps")
    explainer = explainer_of(name)
    size = SIDE if name in SMALL else explainer.preprocessing.size
    anatomy = explainer.family.anatomy(explainer.plain, (3, *size))
    (height, width), (h, w) = anatomy.covers, anatomy.grid
    target = 1 if find(method).class_specific else None
    blank = torch.zeros(1, 3, *size)
    without = explainer.attribute(blank, target, method)
    for cell in ((0, 0), (h // 3, w // 2), (h - 1, w - 2)):
        found = explainer.attribute(marked(blank, cell, (height // h, width // w)), target, method)
        differences = (found - without).abs()
        difference = (differences / differences.sum((1, 2), keepdim=True)).mean(0, keepdim=True)  # each counts alike
        row, column = divmod(int(F.adaptive_avg_pool2d(difference, (h, w)).argmax()), w)
        assert max(abs(row - cell[0]), abs(column - cell[1])) <= (0 if name in EXACT else 1)
