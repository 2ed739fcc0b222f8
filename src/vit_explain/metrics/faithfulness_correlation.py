"""Faithfulness correlation."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from ..cases import Case
from ..curves import Scale, scaled
from ..likeness import correlation
from ..metric_registry import metric
from ..options import Range
from ..removal import Filling


@metric(
    paper="Bhatt, Weller and Moura, Evaluating and Aggregating Feature-based Model Explanations, IJCAI 2020",
    family="faithfulness",
    higher_is_better=True,
    means="Whether the sum of a map over some patches tells how much the score falls without them.",
    does_not_mean="Methods that promise no sums, such as attention rollout, are asked for more than they say.",
    forwards=100,
)
def faithfulness_correlation(
    case: Case,
    *,
    samples: Annotated[int, Range(3, 1e5)] = 100,
    share: Annotated[float, Range(0, 1)] = 0.2,
    fill: Filling = "auto",
    score: Scale = "logit",
) -> Tensor:
    """Correlation of a map's sum over random patches with the fall of the score without them; higher is better.

    ``corr_S(Σ_{i∈S} map_i, y(x) − y(x without S))`` over ``samples`` sets S of ``share`` of the patches, Pearson's;
    (B,) in [-1, 1], NaN for a map that is the same everywhere. The sets are the same for every method.
    """
    removed, scores = case.pictures.at_random(share, samples, fill)
    sums = removed.double() @ case.at("patch").double().cpu()[..., None]
    left = scaled(case, scores, score).cpu()
    return correlation(sums[..., 0], -left)
