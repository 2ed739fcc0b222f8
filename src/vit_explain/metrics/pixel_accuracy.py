"""Pixel accuracy of segmentation by a map."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cases import Case
from ..localisation import unit_maps
from ..metric_registry import metric


def _share(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows[..., 0].sum(-1) / rows[..., 1].sum(-1)


@metric(
    paper="Chefer, Gur and Wolf, Transformer Interpretability Beyond Attention Visualization, CVPR 2021",
    family="localisation",
    higher_is_better=True,
    means="How many pixels are told right, object or background, by whether the map is above its mean.",
    does_not_mean="Relevance is no outline: a faithful map of a part of the object is a bad segmentation.",
    needs={"truth"},
    combine=_share,
)
def pixel_accuracy(case: Case) -> Tensor:
    """Share of the pixels that the map, cut at its mean, tells right; higher is better.

    ``Σ correct / Σ pixels`` over all images, the map resized bilinearly and brought to [0, 1], object where it is above
    its own mean; (B, 2) of the two sums. As in ImageNet-Segmentation by Chefer et al.
    """
    assert case.truth is not None
    truth = case.truth.cpu().flatten(1)
    maps = unit_maps(case)
    right = ((maps > maps.mean(1, keepdim=True)) == truth).double().sum(1)
    found = torch.stack([right, torch.full_like(right, truth.shape[1])], 1)
    return found.masked_fill(~truth.any(1, keepdim=True), torch.nan)
