"""Saliency: the gradient at the pixels."""

from __future__ import annotations

from torch import Tensor

from ..pixel_paths import Level, on_level
from ..registry import method
from ..types import Trace


@method(
    paper="Simonyan et al., Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency "
    "Maps, ICLR Workshop 2014",
    family="gradients",
    means="How strongly the score reacts to a small change of each pixel, in whichever direction.",
    does_not_mean="Gradients are local: what the answer rests on may have a small one where the score hardly moves any "
    "more. It has no sign and is no share of the score.",
    needs={"pixels", "gradient"},
    backwards=1,
    class_specific=True,
)
def saliency(trace: Trace, *, level: Level = "patches") -> Tensor:
    """How strongly the score reacts to a small change of each pixel, in whichever direction.

    ``map = max_c |∂y/∂x_c|``, the paper's maximum over colour channels. ``level``: ``"pixels"`` (B, H, W), or the mean
    over each patch (B, h, w): raw gradients of a ViT repeat with the patches, which says more of its first layer than
    of the image. A mean, as the map is a strength and no share of anything.
    """
    assert trace.pixel_gradient is not None
    return on_level(trace, trace.pixel_gradient.float().abs().amax(1), level, "mean")
