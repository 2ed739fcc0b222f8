"""Mean intersection over union of segmentation by a map."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cases import Case
from ..localisation import unit_maps
from ..metric_registry import metric


def _mean_ratio(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    sums = rows.sum(-2)
    return (sums[..., 0] / sums[..., 1] + sums[..., 2] / sums[..., 3]) / 2


@metric(
    paper="Chefer, Gur and Wolf, Transformer Interpretability Beyond Attention Visualization, CVPR 2021",
    family="localisation",
    higher_is_better=True,
    means="How well object and background are covered where the map is above and below its mean.",
    does_not_mean="Relevance is no outline: a faithful map of a part of the object is a bad segmentation.",
    needs={"truth"},
    combine=_mean_ratio,
)
def mean_iou(case: Case) -> Tensor:
    """Intersection over union of the map cut at its mean, mean of object and background; higher is better.

    ``½ Σ_{c∈{object, background}} Σ |A_c ∩ T_c| / Σ |A_c ∪ T_c|``, sums over all images as in ImageNet-Segmentation by
    Chefer et al., not a mean of the images' ratios; (B, 4) of the sums' terms.
    """
    assert case.truth is not None
    truth = case.truth.cpu().flatten(1)
    maps = unit_maps(case)
    found = maps > maps.mean(1, keepdim=True)
    terms = [(found & truth), (found | truth), (~found & ~truth), (~found | ~truth)]
    counts = torch.stack([term.double().sum(1) for term in terms], 1)
    return counts.masked_fill(~truth.any(1, keepdim=True), torch.nan)
