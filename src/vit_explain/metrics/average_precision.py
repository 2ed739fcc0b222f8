"""Average precision of segmentation by a map."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cases import Case
from ..localisation import unit_maps
from ..metric_registry import metric


@metric(
    paper="Chefer, Gur and Wolf, Transformer Interpretability Beyond Attention Visualization, CVPR 2021",
    family="localisation",
    higher_is_better=True,
    means="How well the map's values rank pixels of the object above those of the background, at all thresholds.",
    does_not_mean="Relevance is no outline: a faithful map of a part of the object is a bad segmentation.",
    needs={"truth"},
)
def average_precision(case: Case) -> Tensor:
    """Average precision of the map as a score of object and, turned around, of background; higher is better.

    ``Σ_k (R_k − R_{k−1}) P_k`` over all thresholds of the two scores ``m`` and ``1 − m`` of each pixel taken together,
    as in ImageNet-Segmentation by Chefer et al. (their mAP is the mean over images); (B,) in [0, 1].
    """
    assert case.truth is not None
    found = []
    for values, truth in zip(unit_maps(case).numpy(), case.truth.cpu().flatten(1).numpy(), strict=True):
        scores, wanted = np.concatenate([values, 1 - values]), np.concatenate([truth, ~truth])
        found.append(_precision(scores, wanted) if truth.any() else np.nan)
    return torch.tensor(found)


def _precision(scores: NDArray[np.float64], wanted: NDArray[np.bool_]) -> float:
    order = np.argsort(-scores, kind="stable")
    hits, ordered = np.cumsum(wanted[order]), scores[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # equal scores are one threshold
    recall = hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0) * hits[last] / (last + 1)))
