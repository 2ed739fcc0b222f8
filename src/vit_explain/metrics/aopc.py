"""Area over the perturbation curve."""

from __future__ import annotations

from torch import Tensor

from ..cases import Case
from ..curves import Steps, inner, kept
from ..metric_registry import metric
from ..removal import Filling, Level
from ..targets import probabilities

_parts = kept(inner, False)


@metric(
    paper="Samek et al., Evaluating the Visualization of What a Deep Neural Network Has Learned, TNNLS 2017; "
    "DeYoung et al., ERASER, ACL 2020",
    family="faithfulness",
    higher_is_better=True,
    means="How far the class's probability falls, on average, when the most relevant parts are removed.",
    does_not_mean="It says nothing about parts that were called irrelevant.",
    forwards=9,
    parts=_parts,
)
def aopc(case: Case, *, steps: Steps = 10, level: Level = "patch", fill: Filling = "auto") -> Tensor:
    """Area over the perturbation curve: mean fall of the class's probability; higher is better.

    ``1/(K+1) Σ_{i=1}^K (p(x) − p(x without the most relevant i/N))``, ``K = N − 1``, from 10 % to 90 % by default;
    (B,), at most 1. The sum's first term, of the whole picture, is zero, hence ``K + 1``.
    """
    whole = case.of_target(probabilities(case.whole))
    fall = whole[:, None] - case.probability(*_parts(steps, level, fill))
    return fall.sum(1) / (fall.shape[1] + 1)
