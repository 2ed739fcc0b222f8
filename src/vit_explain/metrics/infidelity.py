"""Infidelity."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from ..cases import Case
from ..curves import Scale, scaled
from ..metric_registry import metric
from ..options import Range
from ..removal import Filling


@metric(
    paper="Yeh et al., On the (In)fidelity and Sensitivity of Explanations, NeurIPS 2019",
    family="faithfulness",
    higher_is_better=False,
    means="The squared error of a map's sums, at their best scale, as forecasts of how much the score falls.",
    does_not_mean="A map of zeros has a finite error; compare with the uniform map. In squared units of the score, so "
    "numbers of different models cannot be compared.",
    forwards=100,
)
def infidelity(
    case: Case,
    *,
    samples: Annotated[int, Range(3, 1e5)] = 100,
    share: Annotated[float, Range(0, 1)] = 0.2,
    fill: Filling = "auto",
    score: Scale = "logit",
) -> Tensor:
    """Mean squared error of a map's sums as forecasts of the fall of the score; lower is better.

    ``E_S[(β Σ_{i∈S} map_i − (y(x) − y(x without S)))²]`` over ``samples`` random sets S of ``share`` of the patches;
    ``β = E[Σ Δ] / E[Σ²]`` is the scale that fits best, as captum has it with ``normalize=True``, because maps come in
    units of their own; (B,). The paper perturbs pixels by noise or squares; here patches are removed.
    """
    removed, scores = case.pictures.at_random(share, samples, fill)
    sums = (removed.double() @ case.at("patch").double().cpu()[..., None])[..., 0]
    fall = scaled(case, case.whole[:, None], score).double().cpu() - scaled(case, scores, score).double().cpu()
    scale = (sums * fall).mean(1) / (sums**2).mean(1).clamp_min(1e-300)
    return ((scale[:, None] * sums - fall) ** 2).mean(1).float()
