"""Entropy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..cases import Case
from ..metric_registry import metric


@metric(
    paper="Bhatt, Weller and Moura, Evaluating and Aggregating Feature-based Model Explanations, IJCAI 2020",
    family="complexity",
    higher_is_better=False,
    means="Over how many patches a map is spread: 1 where all hold the same, 0 where one holds all.",
    does_not_mean="Nothing about whether these are the right ones.",
)
def entropy(case: Case) -> Tensor:
    """Entropy of the map's magnitudes, relative to the largest possible; lower is simpler.

    ``−Σ p_i log p_i / log n``, ``p_i = |map_i| / Σ |map|`` of n patches; (B,) in [0, 1], NaN for a map of zeros. The
    paper does not divide by ``log n``.
    """
    values = case.at("patch").abs().double().cpu()
    shares = values / values.sum(1, keepdim=True)
    return (torch.special.entr(shares).sum(1) / math.log(values.shape[1])).float()
