"""Average drop."""

from __future__ import annotations

from torch import Tensor

from ..cases import Case
from ..metric_registry import metric
from ..targets import probabilities


@metric(
    paper="Chattopadhay et al., Grad-CAM++, WACV 2018",
    family="faithfulness",
    higher_is_better=False,
    means="Which share of the class's probability is lost in a picture that is faded out where the map is low.",
    does_not_mean="Maps that leave much of the picture as it is lose little; the uniform map is the thing to beat.",
    forwards=1,
)
def average_drop(case: Case) -> Tensor:
    """Share of the class's probability that is lost in the picture times the map; lower is better.

    ``max(0, p(x) − p(x ⊙ m)) / p(x)``, m the map brought to [0, 1] and resized bilinearly; (B,) in [0, 1], of which the
    paper gives the mean in percent. The picture fades towards zeros of the model's input, its mean colour.
    """
    whole = case.of_target(probabilities(case.whole))
    return ((whole - case.probability_faded).clamp_min(0) / whole).float()
