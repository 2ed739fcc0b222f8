"""Deletion."""

from __future__ import annotations

from ..cases import Case
from ..curves import Steps, area, kept
from ..metric_registry import Measured, metric
from ..removal import Filling, Level
from ..removal import steps as shares

_parts = kept(shares, False)


@metric(
    paper="Petsiuk, Das and Saenko, RISE: Randomized Input Sampling for Explanation of Black-box Models, BMVC 2018",
    family="faithfulness",
    higher_is_better=False,
    means="How much of the class's probability is left, on average, while the most relevant parts are removed first.",
    does_not_mean="Small values may come from pictures that the model does not know: see how parts are removed.",
    forwards=21,
    parts=_parts,
    along="share removed",
)
def deletion(case: Case, *, steps: Steps = 20, level: Level = "patch", fill: Filling = "auto") -> Measured:
    """Area under the class's probability while the most relevant parts are removed first; lower is better.

    ``AUC = (Σ_i p_i − p_0/2 − p_N/2) / N`` of N + 1 points (trapezoids), p_i the probability when ``i/N`` of the parts
    are gone; (B,) in [0, 1]. The paper removes pixels, 224 at a time, and puts zeros there (``level=pixel``,
    ``steps=224``, ``fill=zero``); by default patches are removed as tokens.
    """
    # From nothing left to all of it; the curve is read the other way.
    curve = case.probability(*_parts(steps, level, fill))
    return Measured(area(curve), curve.flip(1))
