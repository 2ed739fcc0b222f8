"""Log-odds."""

from __future__ import annotations

from torch import Tensor

from ..cases import Case
from ..curves import Steps, inner, kept
from ..metric_registry import metric
from ..removal import Filling, Level

_parts = kept(inner, False)


@metric(
    paper="Shrikumar, Greenside and Kundaje, DeepLIFT, ICML 2017; Chen, Zheng and Ji, HEDGE, ACL 2020",
    family="faithfulness",
    higher_is_better=False,
    means="How many times less likely the class becomes when the most relevant parts are removed, as a logarithm.",
    does_not_mean="Single answers near zero probability outweigh all others.",
    forwards=9,
    parts=_parts,
)
def log_odds(case: Case, *, steps: Steps = 10, level: Level = "patch", fill: Filling = "auto") -> Tensor:
    """Mean logarithm of the class's probability over what it was; lower is better.

    ``1/K Σ_{i=1}^K log(p(x without the most relevant i/N) / p(x))``, from 10 % to 90 % by default; (B,). Of
    probabilities, in spite of its name.
    """
    whole = case.of_target(case.whole.log_softmax(-1))
    left = case.of_target(case.scores(*_parts(steps, level, fill)).log_softmax(-1))
    return (left - whole[:, None]).mean(1)
