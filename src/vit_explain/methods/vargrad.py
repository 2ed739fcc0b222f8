"""VarGrad."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..options import Range, Seed
from ..pixel_paths import Level, Noise, gradients, noisy, on_level
from ..registry import method
from ..types import Trace


@method(
    paper="Adebayo et al., Local Explanation Methods for Deep Neural Networks Lack Sensitivity to Parameter Values, "
    "ICLR Workshop 2018",
    family="gradients",
    means="How much the gradient changes between noisy copies of the picture: where the score's reaction depends on "
    "details.",
    does_not_mean="A variance is no amount of evidence: a pixel with a large but steady gradient gets nothing. It has "
    "no sign and depends on how much noise is added.",
    needs={"pixels", "gradient", "probe"},
    forwards=51,
    backwards=51,
    class_specific=True,
)
def vargrad(
    trace: Trace,
    *,
    samples: Annotated[int, Range(2)] = 50,
    noise: Noise = 0.15,
    seed: Seed = 0,
    level: Level = "patches",
) -> Tensor:
    """How much the gradient changes between noisy copies of the image: where the score's reaction depends on details.

    ``map = Σ_c Var_s ∂y/∂x_c(x + ε_s)``, divided by the number of samples, with the noise of ``smoothgrad``. The
    variances of the colour channels are added: it is the variance of the gradient as a vector. ``level``: ``"pixels"``
    (B, H, W), or the mean over each patch (B, h, w). One forward and backward a sample.
    """
    assert trace.pixel_gradient is not None
    # Differences from the gradient at the image itself: sums of their squares do not cancel.
    origin = trace.pixel_gradient.float()
    total, squares = torch.zeros_like(origin), torch.zeros_like(origin)
    for gradient in gradients(trace, noisy(trace, noise, samples, seed), samples):
        difference = gradient - origin
        total += difference
        squares += difference**2
    variance = (squares / samples - (total / samples) ** 2).clamp_(min=0)
    return on_level(trace, variance.sum(1), level, "mean")
