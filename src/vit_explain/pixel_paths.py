"""Gradients at the pixels, of many inputs near an image or on the way to it, and maps of them on either level."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import torch
from torch import Tensor

from .options import Range
from .types import Attribution, Trace

Level = Literal["patches", "pixels"]
Samples = Annotated[int, Range(1, 1e6)]
Noise = Annotated[float, Range(0.0)]


def gradients(trace: Trace, points: Iterable[Tensor], total: int) -> Iterator[Tensor]:
    """∂y/∂pixels at each of the points, (B, C, H, W) each and float32; several points a look.

    ``total``: the method's forwards, for whoever watches its progress.
    """
    done = 0
    for rows, number in _batches(trace, points, trace.inquiry.room):
        found = trace.inquiry.again(rows, {"pixels", "gradient"}).pixel_gradient
        assert found is not None
        done += number
        trace.inquiry.progress(done, total)
        yield from found.float().unflatten(0, (-1, number)).unbind(1)


def values(trace: Trace, points: Iterable[Tensor], total: int, done: int = 0) -> Iterator[Tensor]:
    """y (B,) at each of the points, (B, C, H, W) each; ``done``: how many of the ``total`` forwards were before."""
    for rows, number in _batches(trace, points, max(1, trace.inquiry.rows() // len(trace.pixels))):
        found = trace.inquiry.probe(rows, probability=False)
        done += number
        trace.inquiry.progress(done, total)
        yield from found.unflatten(0, (-1, number)).unbind(1)


def _batches(trace: Trace, points: Iterable[Tensor], size: int) -> Iterator[tuple[Tensor, int]]:
    """(rows (B·n, C, H, W) in image-major order, n), up to ``size`` points at a time."""
    points = iter(points)
    while some := list(itertools.islice(points, size)):
        yield torch.stack(some, 1).flatten(0, 1).to(trace.pixels.dtype), len(some)


def noisy(trace: Trace, noise: float, samples: int, seed: int) -> Iterator[Tensor]:
    """``samples`` times the pixels plus Gaussian noise with σ = noise · (max − min) of each image's own pixels.

    The draws are the same for every image and do not depend on how many images or samples there are.
    """
    pixels = trace.pixels.float()
    low, high = pixels.flatten(1).aminmax(dim=1)
    sigma = noise * (high - low).view(-1, 1, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        yield pixels + sigma * torch.randn(pixels.shape[1:], generator=generator).to(pixels.device)


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, C, H, W), σ in pixels; at the edges the kernel's rest is scaled up to one.

    For a σ of any part of the picture; ``perturb.blurred`` is for one of a patch, cut off where it is small.
    """

    def weights(side: int) -> Tensor:
        where = torch.arange(side, dtype=torch.float32, device=pixels.device)
        return (-((where[:, None] - where) ** 2) / (2 * sigma**2)).softmax(1)

    height, width = pixels.shape[2:]
    return weights(height) @ pixels.float() @ weights(width).T


def on_level(trace: Trace, per_pixel: Tensor, level: Level, how: Literal["sum", "mean"]) -> Tensor:
    """(B, H, W) as it is, or its sum or mean over each patch, (B, h, w).

    Shares of a whole are summed, so that the map still adds up to it; strengths are averaged, so that they stay
    strengths of a pixel. Pixels that no patch covers have no gradient: on the level of pixels they are zero.
    """
    if level == "pixels":
        return per_pixel
    (h, w), (height, width) = trace.anatomy.grid, trace.anatomy.covers
    # The last patches may reach beyond the picture.
    beyond = (0, max(0, width - per_pixel.shape[2]), 0, max(0, height - per_pixel.shape[1]))
    whole = torch.nn.functional.pad(per_pixel[:, :height, :width], beyond)
    patches = whole.unflatten(2, (w, -1)).unflatten(1, (h, -1))  # (B, h, p, w, q)
    return patches.sum((2, 4)) if how == "sum" else patches.mean((2, 4))


def complete(shares: Tensor, found: Tensor, difference: Tensor, limit: float, advice: str) -> Attribution:
    """The map of shares, with the facts how far their sum ``found`` (B,) is from the ``difference`` (B,) it should be.

    Above ``limit`` a warning says so, with advice.
    """
    gap = (found - difference).abs() / difference.abs().clamp_min(torch.finfo(difference.dtype).tiny)
    warnings = [
        [f"the map adds up to {total:.4g} instead of {wanted:.4g} (completeness gap {share:.0%}): {advice}"]
        if share > limit
        else []
        for total, wanted, share in zip(found.tolist(), difference.tolist(), gap.tolist(), strict=True)
    ]
    return Attribution(shares, {"completeness_gap": gap, "y_difference": difference}, warnings)
