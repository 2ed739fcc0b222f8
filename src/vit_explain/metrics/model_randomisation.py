"""Model randomisation by rank correlation."""

from __future__ import annotations

from torch import Tensor

from ..cases import Case
from ..likeness import rank_correlation
from ..metric_registry import metric
from ..randomised import Stages, over_stages


@metric(
    paper="Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018",
    family="sanity",
    higher_is_better=False,
    means="How alike the maps of the model and of a model with random weights are: 1 says that the map does not depend "
    "on what was learnt.",
    does_not_mean="Architecture alone places some relevance: a value above 0 is no failure by itself.",
    maps=4,
    needs={"maps"},
)
def model_randomisation(case: Case, *, stages: Stages = 4) -> Tensor:
    """Rank correlation of the map with those of the model with its weights drawn anew from the top; lower is better.

    ``1/S Σ_s |spearman(map, map of the model with the last s/S of its layers drawn anew)|`` on patches; (B,) in [0, 1].
    Weights are drawn from a normal distribution of the mean and deviation that each tensor has.
    """
    return over_stages(case, stages, lambda one, other: rank_correlation(one, other).abs())
