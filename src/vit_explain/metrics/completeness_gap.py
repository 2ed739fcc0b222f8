"""Completeness gap."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cases import Case
from ..metric_registry import metric


@metric(
    paper="Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, ICML 2017",
    family="sanity",
    higher_is_better=False,
    means="By how much a map's sum misses what its method says that it should be.",
    does_not_mean="Only of methods that promise a sum and say how far they are from it; a small gap does not make the "
    "places right.",
)
def completeness_gap(case: Case) -> Tensor:
    """How far the map's sum is from what the method promises, relative to that; lower is better.

    ``|Σ map − (y(x) − y(x₀))| / |y(x) − y(x₀)|`` with the method's own y and x₀, as it states them in its facts; (B,),
    NaN for methods that promise no sum. Of FullGrad all its terms count, also those that no patch has.
    """
    if "completeness_gap" in case.facts:
        return case.facts["completeness_gap"]
    if "efficiency_gap" in case.facts:  # of games: in units of the score
        worth = case.facts["score"] - case.facts["score_of_nothing"]
        return (case.facts["efficiency_gap"] / worth).abs()
    return torch.full((len(case.maps),), torch.nan)
