"""Model randomisation by structural similarity."""

from __future__ import annotations

from torch import Tensor

from ..cases import Case
from ..likeness import structural_similarity
from ..metric_registry import metric
from ..randomised import Stages, over_stages


@metric(
    paper="Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018",
    family="sanity",
    higher_is_better=False,
    means="How alike the maps of the model and of a model with random weights look: 1 says that the map does not "
    "depend on what was learnt.",
    does_not_mean="Two maps that are dark nearly everywhere look alike.",
    maps=4,
    needs={"maps"},
)
def model_randomisation_ssim(case: Case, *, stages: Stages = 4) -> Tensor:
    """Structural similarity of the map with those of the model with its weights drawn anew; lower is better.

    As ``model_randomisation``, with SSIM of maps brought to [0, 1] instead of the rank correlation; (B,) in [-1, 1].
    """
    return over_stages(case, stages, structural_similarity)
