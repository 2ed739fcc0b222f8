"""Expected gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from ..options import Seed
from ..pixel_paths import Level, Samples, blurred, complete, gradients, on_level, values
from ..registry import method
from ..types import Attribution, Trace

Baseline = Literal["colour", "noise", "blur"]
GAP = 0.25  # of the difference that the map should add up to; samples scatter, so more than for an integral


@method(
    paper="Erion et al., Improving performance of deep learning models with axiomatic attribution priors and expected "
    "gradients, Nature Machine Intelligence 2021",
    family="gradients",
    means="Each pixel's share, for and against, of the difference between the score and its mean over many baselines.",
    does_not_mean="It depends on the baselines, which here are drawn colours, noise or blurs instead of the paper's "
    "training pictures. Shares add up to the difference only up to the scatter of the samples.",
    needs={"probe"},
    forwards=101,
    backwards=50,
    class_specific=True,
    signed=True,
)
def expected_gradients(
    trace: Trace, *, samples: Samples = 50, baseline: Baseline = "colour", seed: Seed = 0, level: Level = "patches"
) -> Attribution:
    """Integrated gradients averaged over many baselines: no single colour is taken for "nothing there".

    ``map = Σ_c mean_s (x − x_s)_c ∂y/∂x_c(x_s + α_s (x − x_s))`` with one α a sample, uniform on [0, 1], which adds up
    to ``y(x) − mean_s y(x_s)`` up to the scatter of the samples. The αs are stratified, the s-th of S drawn from
    [s/S, (s + 1)/S], which keeps the expectation and scatters less.

    ``baseline``: the paper draws training images, which are not at hand here. ``"colour"``: one flat colour an image,
    every channel drawn from N(0, 1), which are the mean and variance of the training pixels after a model's usual
    normalisation; ``"noise"``: every value drawn from N(0, 1); ``"blur"``: the image itself, blurred with a Gaussian
    whose σ is uniform between 2 and 10 % of its longer side. ``level``: ``"pixels"`` (B, H, W), or the sum over each
    patch (B, h, w).

    Facts: ``y_difference``, ``y(x) − mean_s y(x_s)``; ``completeness_gap``, ``|Σ map − y_difference| /
    |y_difference|``, with a warning above 0.25.
    """
    assert trace.y is not None
    pixels = trace.pixels.float()
    found = torch.zeros_like(pixels)
    points = (start + alpha * (pixels - start) for start, alpha in _starts(pixels, samples, baseline, seed))
    drawn = _starts(pixels, samples, baseline, seed)
    for (start, _), gradient in zip(drawn, gradients(trace, points, 2 * samples), strict=True):
        found += (pixels - start) * gradient / samples
    shares = found.sum(1)
    starts = (start for start, _ in _starts(pixels, samples, baseline, seed))
    difference = trace.y - sum(values(trace, starts, 2 * samples, samples)) / samples
    shown = on_level(trace, shares, level, "sum")
    return complete(shown, shares.sum((1, 2)), difference, GAP, "take more samples")


def _starts(pixels: Tensor, samples: int, baseline: Baseline, seed: int) -> Iterator[tuple[Tensor, float]]:
    """(baselines (B, C, H, W), α), sample by sample, the same draws for every image; no two are held at once."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = pixels.shape[1:]
    for sample in range(samples):
        alpha, share = torch.rand(2, generator=generator).tolist()
        if baseline == "blur":
            start = blurred(pixels, (0.02 + 0.08 * share) * max(height, width))
        else:
            size = (channels, 1, 1) if baseline == "colour" else (channels, height, width)
            start = torch.randn(size, generator=generator).to(pixels.device).expand_as(pixels)
        yield start, (sample + alpha) / samples
