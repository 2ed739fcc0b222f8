"""Negative perturbation."""

from __future__ import annotations

from torch import Tensor

from ..cases import Case
from ..curves import Reference, Steps, correct, inner, kept
from ..metric_registry import metric
from ..removal import Filling, Level

_parts = kept(inner, True)


@metric(
    paper="Chefer, Gur and Wolf, Transformer Interpretability Beyond Attention Visualization, CVPR 2021",
    family="faithfulness",
    higher_is_better=True,
    means="How often the model still names the class while the least relevant parts are removed first.",
    does_not_mean="It only sees which class is first, not how sure the model is.",
    forwards=9,
    needs={"labels"},
    parts=_parts,
)
def negative_perturbation(
    case: Case,
    *,
    steps: Steps = 10,
    level: Level = "patch",
    fill: Filling = "auto",
    reference: Reference = "label",
) -> Tensor:
    """Accuracy while the least relevant parts are removed first, mean of 10 % to 90 %; higher is better.

    ``1/(N−1) Σ_{i=1}^{N−1} [argmax of what is left = the class]`` with ``i/N`` of the parts removed; (B,) in [0, 1].
    The class is the image's true one, or with ``reference="target"`` the one explained. The paper removes pixels and
    paints them black (``level=pixel``, ``fill=black``), and calls the mean an area under the curve.
    """
    return correct(case, case.scores(*_parts(steps, level, fill)), reference)
