"""Artifact tokens: patches whose tokens have far larger norms than the others', and maps that lie on them.

Large Vision Transformers keep notes about the whole picture in a few patches of plain background (Darcet et al., Vision
Transformers Need Registers, ICLR 2024). Attention goes there although nothing is to be seen there.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from .types import Attribution, Trace

DEVIATIONS = 6.0  # robust standard deviations above the median
FEW = 0.05  # artifacts are less than this share of the patches,
MOST = 0.5  # and a map with more than this share of its positive mass on them is dominated by them


def outliers(norms: Tensor, deviations: float = DEVIATIONS) -> Tensor:
    """Which of each image's patches (B, n) are artifacts, from their tokens' norms.

    ``norm > median + max(deviations · 1.4826 MAD, median)``: far outside the other norms' spread, as the median
    absolute deviation tells it, and more than twice their median, because norms may also differ very little. Both are
    of the image itself: Darcet et al. read fixed thresholds off histograms, which fit one model each.
    """
    middle = median(norms)[:, None]
    spread = 1.4826 * median((norms - middle).abs())[:, None]
    return norms > middle + torch.maximum(deviations * spread, middle)


def median(values: Tensor) -> Tensor:
    """(B, n) -> (B,), the lower of two; torch's own refuses ``torch.use_deterministic_algorithms`` on CUDA devices."""
    return values.sort(1).values[:, (values.shape[1] - 1) // 2]


def mass_on(found: Tensor, maps: Tensor) -> Tensor:
    """Share (B,) of the positive mass of maps (B, h, w) on the patches found (B, h·w); 0 where nothing is positive."""
    positive = maps.flatten(1).clamp_min(0)
    return (positive * found).sum(1) / positive.sum(1).clamp_min(torch.finfo(positive.dtype).tiny)


def dominated(norms: Tensor, maps: Tensor) -> Tensor:
    """Which maps (B, h, w) say little more than where artifact tokens are, from the norms (B, h·w) of the patches.

    More than half of the positive mass lies on artifact tokens, which are less than one patch in twenty.
    """
    found = outliers(norms)
    return (found.float().mean(1) < FEW) & (mass_on(found, maps) > MOST)


def warned(trace: Trace, found: Attribution) -> Attribution:
    """The attribution with a warning at each image whose map is dominated by artifact tokens of the last block."""
    if trace.norms is None:
        return found
    grid, norms = trace.anatomy.grid, trace.norms[:, trace.anatomy.prefix :]
    maps = found.map.detach().float().to(norms.device)  # methods may work out the last step elsewhere
    if tuple(maps.shape[1:]) != grid:  # at the pixels
        height, width = trace.anatomy.covers
        maps = F.adaptive_avg_pool2d(maps[:, None, :height, :width].clamp_min(0), grid)[:, 0]
    flags = dominated(norms, maps).tolist()
    if not any(flags):
        return found
    artifacts = outliers(norms)
    counts, shares = artifacts.sum(1).tolist(), mass_on(artifacts, maps).tolist()
    warnings = found.warnings or [[] for _ in flags]
    return dataclasses.replace(
        found,
        warnings=[
            [*before, _sentence(count, norms.shape[1], share)] if flag else before
            for before, flag, count, share in zip(warnings, flags, counts, shares, strict=True)
        ],
    )


def _sentence(count: int, patches: int, share: float) -> str:
    lie = "1 patch whose token has a norm" if count == 1 else f"{count} patches whose tokens have norms"
    return (
        f"{share:.0%} of this map lies on {lie} far above those of the other {patches - count}: artifact tokens "
        "(Darcet et al. 2024), where the model keeps notes about the whole picture, not what is to be seen there; "
        "artifact_tokens shows them"
    )
