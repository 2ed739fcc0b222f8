"""Integrated gradients."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch

from ..options import Range
from ..pixel_paths import Level, blurred, complete, gradients, on_level
from ..registry import method
from ..types import Attribution, Trace

GAP = 0.05  # of the difference that the map should add up to; more is worth a warning


@method(
    paper="Sundararajan et al., Axiomatic Attribution for Deep Networks, ICML 2017",
    family="gradients",
    means="Each pixel's share, for and against, of the difference in the score between a baseline and the picture.",
    does_not_mean="It depends on the baseline: a pixel that equals it gets nothing, whatever it means to the model. "
    "The way between the two leads through pictures unlike those that the model was trained on.",
    needs={"probe"},
    forwards=52,
    backwards=50,
    class_specific=True,
    signed=True,
)
def integrated_gradients(
    trace: Trace,
    *,
    steps: Annotated[int, Range(1, 1000)] = 50,
    baseline: Literal["zero", "blur"] = "zero",
    level: Level = "patches",
) -> Attribution:
    """Gradients gathered on the way from a baseline to the image: each pixel's share of the difference in the score.

    ``map = Σ_c (x − x₀)_c ∫₀¹ ∂y/∂x_c(x₀ + α (x − x₀)) dα``, which adds up to ``y(x) − y(x₀)``. The integral is
    taken by Gauss-Legendre quadrature with ``steps`` points, one forward and backward each; the paper adds up a Riemann
    sum, which needs more of them; the points themselves take time with the cube of their number, hence the bound.

    ``baseline``: ``"zero"``, zero in the model's own pixels, mean grey for most models (black would need their mean and
    standard deviation, which a method is not told); or ``"blur"``, the image blurred with a Gaussian whose σ is a
    twentieth of its longer side. A pixel that equals the baseline gets nothing, whatever it means to the model.
    ``level``: ``"pixels"`` (B, H, W), or the sum over each patch (B, h, w), which keeps what the map adds up to.

    Facts: ``y_difference``, ``y(x) − y(x₀)``; ``completeness_gap``, ``|Σ map − y_difference| / |y_difference|``, with
    a warning above 0.05. It is large where more steps are needed, or where the difference itself is close to zero.
    """
    assert trace.y is not None
    pixels = trace.pixels.float()
    start = torch.zeros_like(pixels) if baseline == "zero" else blurred(pixels, max(pixels.shape[2:]) / 20)
    way = pixels - start
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1], where the weights add up to 2
    points = (start + float(1 + node) / 2 * way for node in nodes)
    mean = torch.zeros_like(pixels)
    for weight, gradient in zip(weights, gradients(trace, points, steps), strict=True):
        mean += float(weight) / 2 * gradient
    shares = (way * mean).sum(1)
    difference = trace.y - trace.inquiry.probe(start.to(trace.pixels.dtype), probability=False)
    shown = on_level(trace, shares, level, "sum")
    return complete(shown, shares.sum((1, 2)), difference, GAP, "take more steps")
