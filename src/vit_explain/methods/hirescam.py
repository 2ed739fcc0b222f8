"""HiResCAM."""

from __future__ import annotations

from torch import Tensor

from ..cams import patch_features, patch_gradients
from ..registry import method
from ..types import Trace


@method(
    paper="Draelos and Carin, Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural "
    "networks, arXiv 2020",
    family="class activation maps",
    means="To first order, what each patch's features say for and against the class as the last attention gets them.",
    does_not_mean="It would be a share of the score only if all that follows were linear. In a model with a class "
    "token it sees only what the last attention still fetches from the patches, not what that token had gathered "
    "before.",
    needs={"features", "gradient"},
    backwards=1,
    class_specific=True,
    signed=True,
)
def hirescam(trace: Trace) -> Tensor:
    """Features times their gradient, patch by patch: what each patch's features add to the score.

    ``map_i = Σ_k G_ik Z_ik``, (B, h, w), signed; Z and G as in ``gradcam``. Nothing is averaged over patches, so a
    patch that the score does not depend on stays at zero. pytorch-grad-cam shows the positive part only.
    """
    return (patch_gradients(trace) * patch_features(trace)).sum(2).unflatten(1, trace.anatomy.grid)
