"""Class-discriminative attention map."""

from __future__ import annotations

from torch import Tensor

from ..cams import patch_features, patch_gradients
from ..registry import method
from ..types import Trace


@method(
    paper="Brocki et al., Class-Discriminative Attention Maps for Vision Transformers, 2023 (arXiv 2312.02364)",
    family="class activation maps",
    means="To first order, what each patch's token says for and against the class as the last attention gets it.",
    does_not_mean="It would be a share of the score only if all that follows were linear. In a model with a class "
    "token it sees only what the last attention still fetches from the patches, and tokens that late hold more than "
    "their own patch.",
    needs={"features", "gradient"},
    backwards=1,
    class_specific=True,
    signed=True,
)
def cdam(trace: Trace) -> Tensor:
    """Tokens that enter the last attention, times their gradient: what each patch says for and against the class.

    ``map_i = Σ_d T[i, d] ∂y/∂T[i, d]`` at the patches, (B, h, w), signed, with T the tokens after the norm before the
    last attention. A function of the model's output as target gives the paper's concept maps. Its smoothed and
    integrated forms are not offered; without them this is the map that HiRes-CAM makes of the same layer.
    """
    return (patch_features(trace) * patch_gradients(trace)).sum(2).unflatten(1, trace.anatomy.grid)
