"""Input times gradient."""

from __future__ import annotations

from torch import Tensor

from ..pixel_paths import Level, on_level
from ..registry import method
from ..types import Trace


@method(
    paper="Shrikumar et al., Not Just a Black Box: Learning Important Features Through Propagating Activation "
    "Differences, arXiv 2016",
    family="gradients",
    means="Each pixel's share of the score, for and against, were the model linear.",
    does_not_mean="The model is not linear, so shares do not add up to the score. Pixels at zero, mean grey for most "
    "models, get nothing, whatever they mean to it.",
    needs={"pixels", "gradient"},
    backwards=1,
    class_specific=True,
    signed=True,
)
def input_x_gradient(trace: Trace, *, level: Level = "patches") -> Tensor:
    """Pixels times the gradient there: each pixel's share of the score, were the model linear.

    ``map = Σ_c x_c ∂y/∂x_c`` with x as the model gets it, so mean grey is zero for most models. ``level``: ``"pixels"``
    (B, H, W), or the sum over each patch (B, h, w): shares of a patch's pixels add up to the patch's.
    """
    assert trace.pixel_gradient is not None
    shares = trace.pixels.float() * trace.pixel_gradient.float()
    return on_level(trace, shares.sum(1), level, "sum")
