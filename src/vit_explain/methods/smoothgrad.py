"""SmoothGrad."""

from __future__ import annotations

from torch import Tensor

from ..options import Seed
from ..pixel_paths import Level, Noise, Samples, gradients, noisy, on_level
from ..registry import method
from ..types import Trace


@method(
    paper="Smilkov et al., SmoothGrad: removing noise by adding noise, ICML Workshop 2017",
    family="gradients",
    means="How strongly the score reacts to a small change of each pixel, averaged over noisy copies of the picture so "
    "that small wiggles cancel.",
    does_not_mean="It is still a reaction, without a sign, and no share of the score. It depends on how much noise is "
    "added, and noisy pictures are unlike those that most models were trained on.",
    needs={"probe"},
    forwards=51,
    backwards=50,
    class_specific=True,
)
def smoothgrad(
    trace: Trace, *, samples: Samples = 50, noise: Noise = 0.15, seed: Seed = 0, level: Level = "patches"
) -> Tensor:
    """Saliency of the gradient averaged over noisy copies of the image: what the reaction is, small wiggles aside.

    ``map = max_c |mean_s ∂y/∂x_c(x + ε_s)|``, ``ε_s ~ N(0, σ²)`` with ``σ = noise · (max x − min x)`` of the image's
    own normalised pixels; the paper finds 0.1 to 0.2 good. It averages signed gradients, as is done here, and leaves
    open how channels are joined: as in ``saliency``, so that without noise the two agree. ``level``: ``"pixels"``
    (B, H, W), or the mean over each patch (B, h, w). One forward and backward a sample.
    """
    mean = sum(gradients(trace, noisy(trace, noise, samples, seed), samples)) / samples
    assert isinstance(mean, Tensor)
    return on_level(trace, mean.abs().amax(1), level, "mean")
