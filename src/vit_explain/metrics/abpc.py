"""Area between perturbation curves."""

from __future__ import annotations

from torch import Tensor

from ..cases import Case
from ..curves import Scale, Steps, kept, scaled
from ..metric_registry import metric
from ..removal import Filling, Level
from ..removal import steps as shares

_parts = kept(shares, True, False)


@metric(
    paper="Schulz, Sixt, Tombari and Landgraf, Restricting the Flow, ICLR 2020; Achtibat et al., AttnLRP, ICML 2024",
    family="faithfulness",
    higher_is_better=True,
    means="How much more of the class is left when the least relevant parts are removed first than when the most "
    "relevant ones are. Whatever removing parts does to any picture takes part in both and cancels.",
    does_not_mean="It does not tell a map that finds what matters from one that finds what does not.",
    forwards=20,
    parts=_parts,
)
def abpc(
    case: Case, *, steps: Steps = 10, level: Level = "patch", fill: Filling = "auto", score: Scale = "probability"
) -> Tensor:
    """Area between the curves of least and of most relevant first; higher is better.

    ``1/(N+1) Σ_{i=0}^N (LeRF_i − MoRF_i)``, the class's probability (or logit, ``score``) with ``i/N`` of the parts
    removed, least and most relevant first; (B,), 0 for maps without any meaning.
    """
    least, most = (scaled(case, case.scores(part), score) for part in _parts(steps, level, fill))
    return (least - most).mean(1)
