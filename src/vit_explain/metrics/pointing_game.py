"""Pointing game."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ..cases import Case
from ..metric_registry import metric
from ..options import Range


@metric(
    paper="Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016",
    family="localisation",
    higher_is_better=True,
    means="Whether the place that a map calls most relevant lies on the object.",
    does_not_mean="Models may rightly look beside the object; and photos show objects in the middle, where the centred "
    "Gaussian points, too.",
    needs={"truth"},
)
def pointing_game(case: Case, *, tolerance: Annotated[float, Range(0, 1000)] = 0.0) -> Tensor:
    """Whether the map's largest value lies on the object; higher is better.

    ``[argmax map ∈ object]`` on pixels, the map resized bilinearly; of several largest values the share that does;
    (B,) in [0, 1]. ``tolerance``: pixels of the model's input that it may be away from the object; 15 in the paper.
    """
    assert case.truth is not None
    height, width = case.pictures.anatomy.covers
    maps = case.at("pixel").cpu().view(-1, height, width)
    found = []
    for values, truth in zip(maps, case.truth.cpu(), strict=True):
        largest = values == values.max()
        if truth.any():
            distance = torch.from_numpy(np.asarray(distance_transform_edt(~truth.numpy())))
            found.append((largest & (distance <= tolerance)).sum() / largest.sum())
        else:
            found.append(torch.tensor(torch.nan))
    return torch.stack(found)
