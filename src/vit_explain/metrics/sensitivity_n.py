"""Sensitivity-n."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..cases import Case
from ..curves import Scale, scaled
from ..likeness import correlation
from ..metric_registry import metric
from ..options import Range
from ..removal import Filling


@metric(
    paper="Ancona et al., Towards Better Understanding of Gradient-based Attribution Methods, ICLR 2018",
    family="faithfulness",
    higher_is_better=True,
    means="Whether the sum of a map over some patches tells how much the score falls without them, for few patches "
    "and for many.",
    does_not_mean="Methods that promise no sums, such as attention rollout, are asked for more than they say.",
    forwards=100,
)
def sensitivity_n(
    case: Case,
    *,
    sizes: Annotated[int, Range(1, 100)] = 5,
    samples: Annotated[int, Range(3, 1e5)] = 20,
    fill: Filling = "auto",
    score: Scale = "logit",
) -> Tensor:
    """Mean over set sizes n of the correlation of a map's sums with the fall of the score; higher is better.

    As ``faithfulness_correlation``, with ``samples`` sets each of ``i/(sizes + 1)`` of the patches, i = 1 to ``sizes``;
    (B,) in [-1, 1]. The paper plots the correlation over n; this is the mean of its curve.
    """
    maps = case.at("patch").double().cpu()[..., None]
    found = []
    for i in range(1, sizes + 1):
        removed, scores = case.pictures.at_random(i / (sizes + 1), samples, fill)
        found.append(correlation((removed.double() @ maps)[..., 0], -scaled(case, scores, score).cpu()))
    return torch.stack(found).mean(0)
