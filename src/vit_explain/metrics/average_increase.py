"""Average increase."""

from __future__ import annotations

from torch import Tensor

from ..cases import Case
from ..metric_registry import metric
from ..targets import probabilities


@metric(
    paper="Chattopadhay et al., Grad-CAM++, WACV 2018",
    family="faithfulness",
    higher_is_better=True,
    means="How often the class gets likelier in a picture that is faded out where the map is low.",
    does_not_mean="Where the model is sure of a class already, no map can do that.",
    forwards=1,
)
def average_increase(case: Case) -> Tensor:
    """How often the class's probability rises in the picture times the map; higher is better.

    ``[p(x ⊙ m) > p(x)]``, with m as in ``average_drop``; (B,) of 0 and 1, whose mean the paper gives in percent.
    """
    return (case.probability_faded > case.of_target(probabilities(case.whole))).float()
