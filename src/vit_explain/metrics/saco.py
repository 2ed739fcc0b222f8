"""Salience-guided faithfulness coefficient."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..cases import Case
from ..metric_registry import metric
from ..options import Range
from ..removal import Filling
from ..targets import probabilities


@metric(
    paper="Wu et al., On the Faithfulness of Vision Transformer Explanations, CVPR 2024",
    family="faithfulness",
    higher_is_better=True,
    means="Whether groups of patches that a map calls more salient really matter more, counted by how much more "
    "salient it calls them: 1 if always, -1 if never, near 0 by chance.",
    does_not_mean="A group's effect is measured alone; what counts only together with other groups is not seen.",
    forwards=10,
)
def saco(case: Case, *, groups: Annotated[int, Range(2, 1000)] = 10, fill: Filling = "auto") -> Tensor:
    """Salience-guided faithfulness coefficient; higher is better.

    Patches are sorted by the map and split into K groups of equal size; ``s_i`` is a group's sum of the map, ``Δ_i``
    how much the class's probability falls without the group. Over all pairs i < j, so that ``s_i ≥ s_j``:
    ``Σ w_ij / Σ |w_ij|`` with ``w_ij = s_i − s_j`` if ``Δ_i ≥ Δ_j``, else ``−(s_i − s_j)``; (B,) in [-1, 1], NaN for a
    map that is the same everywhere. The paper paints a group in the image's mean colour (``fill=mean``); that and
    K = 10 could not be checked against the authors' code.
    """
    number = case.number("patch")
    groups = min(groups, number)
    member = case.ranks("patch") * groups // number  # (B, n), which group each patch is in
    removed = member[:, None] == torch.arange(groups)[:, None]
    maps = case.at("patch").double().cpu()
    salience = (maps[:, None] * removed).sum(-1) / removed.sum(-1) * (number / groups)  # groups may differ by one
    left = case.of_target(probabilities(case.pictures.without(removed, fill))).double().cpu()
    effect = -left  # the whole picture's probability is the same for all
    first, second = torch.triu_indices(groups, groups, 1)
    weight = salience[:, first] - salience[:, second]
    agreed = torch.where(effect[:, first] >= effect[:, second], weight, -weight)
    return (agreed.sum(1) / weight.abs().sum(1)).float()
