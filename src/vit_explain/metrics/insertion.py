"""Insertion."""

from __future__ import annotations

from ..cases import Case
from ..curves import Steps, area, kept
from ..metric_registry import Measured, metric
from ..removal import Filling, Level
from ..removal import steps as shares

_parts = kept(shares, True)


@metric(
    paper="Petsiuk, Das and Saenko, RISE: Randomized Input Sampling for Explanation of Black-box Models, BMVC 2018",
    family="faithfulness",
    higher_is_better=True,
    means="How soon the class's probability is reached when the most relevant parts are shown first.",
    does_not_mean="It rewards maps that find one sufficient part; what else speaks for the class does not count.",
    forwards=21,
    parts=_parts,
    along="share shown",
)
def insertion(case: Case, *, steps: Steps = 20, level: Level = "patch", fill: Filling = "auto") -> Measured:
    """Area under the class's probability while the most relevant parts are put in first; higher is better.

    ``AUC = (Σ_i p_i − p_0/2 − p_N/2) / N`` of N + 1 points, p_i the probability when only the most relevant ``i/N`` of
    the parts are there; (B,) in [0, 1]. The paper puts pixels, 224 at a time, into a blurred picture (``level=pixel``,
    ``steps=224``, ``fill=blur``, there of 11 taps and a deviation of 5 pixels); by default patches are put in as
    tokens.
    """
    curve = case.probability(*_parts(steps, level, fill))
    return Measured(area(curve), curve)
