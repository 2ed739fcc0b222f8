"""Class sensitivity."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cases import Case
from ..likeness import rank_correlation
from ..metric_registry import metric


@metric(
    paper="Sixt, Granz and Landgraf, When Explanations Lie, ICML 2020",
    family="sanity",
    higher_is_better=False,
    means="How alike the maps of the class and of the runner-up are: 1 says that the method does not see the class.",
    does_not_mean="Two classes may rightly rest on the same patches; 0 or below is no aim in itself.",
    maps=1,
    needs={"maps"},
)
def class_sensitivity(case: Case) -> Tensor:
    """Rank correlation of the map with that of the next likeliest class; lower is better.

    Spearman's of the two raw maps on patches; (B,) in [-1, 1], NaN for a map that is the same everywhere. 1 for methods
    that do not depend on a class, whose map is the same map.
    """
    assert case.explain is not None
    others = case.whole.clone().scatter_(1, case.targets[:, None].to(case.whole.device), -torch.inf)
    runner_up = case.explain(case.pictures.pixels, others.argmax(1))
    return rank_correlation(case.maps, runner_up)
