"""Maps and the place of an object, on the pixels that patches cover."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import Case
from .likeness import unit
from .removal import covered


def positive_share(case: Case) -> Tensor:
    """(B,) the share of the map's positive relevance on the object; NaN where no object is known."""
    assert case.truth is not None
    anatomy = case.pictures.anatomy
    maps, truth = covered(case.maps.double().cpu().clamp_min(0), anatomy), case.truth.cpu()
    # A token's relevance lies evenly on its pixels, so the object has the part of it that it has of the token.
    inside = F.adaptive_avg_pool2d(truth[:, None].double(), (maps.shape[1], maps.shape[2]))[:, 0]
    total = maps.sum((1, 2))
    share = (maps * inside).sum((1, 2)) / total.clamp_min(torch.finfo(torch.float64).tiny)
    return share.masked_fill(~truth.flatten(1).any(1), torch.nan).float()


def unit_maps(case: Case) -> Tensor:
    """Maps (B, H·W) resized bilinearly to pixels and brought to [0, 1], float64; one half where all is the same."""
    return unit(case.at("pixel").double().cpu(), 0.5)
