"""Gini index."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cases import Case
from ..metric_registry import metric


@metric(
    paper="Chalasani et al., Concise Explanations of Neural Networks using Adversarial Training, ICML 2020",
    family="complexity",
    higher_is_better=True,
    means="How few patches hold most of a map: 0 where all hold the same, near 1 where one holds all.",
    does_not_mean="Nothing about whether these are the right ones.",
)
def gini(case: Case) -> Tensor:
    """Gini index of the map's magnitudes; higher is sparser.

    ``Σ_k (2k − n − 1) |v|_(k) / (n Σ |v|)``, ``|v|_(k)`` the k-th smallest of n patches; (B,) in [0, 1), NaN for a map
    of zeros.
    """
    values = case.at("patch").abs().double().cpu().sort(1).values
    n = values.shape[1]
    weights = 2 * torch.arange(1, n + 1) - n - 1
    return ((values * weights).sum(1) / (n * values.sum(1))).float()
