"""How alike two maps are: rank correlation and structural similarity."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .ranks import spearman

WINDOW = 7  # cells; what scikit-image takes by default
LUMINANCE, CONTRAST = 0.01**2, 0.03**2  # Wang et al.'s constants for numbers in [0, 1]


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's of each image's two maps, (B, ...) and (B, ...) -> (B,); NaN where one of them ranks nothing."""
    pairs = zip(one.flatten(1).double().cpu().numpy(), other.flatten(1).double().cpu().numpy(), strict=True)
    return torch.tensor([float(spearman(np.stack(pair))[0, 1]) for pair in pairs])


def structural_similarity(one: Tensor, other: Tensor) -> Tensor:
    """SSIM (Wang et al., TIP 2004) of each image's two maps (B, h, w), each brought to [0, 1]; (B,).

    The mean over 7 × 7 windows, smaller where a map is. A map that is the same everywhere is zero throughout.
    """
    side = min(WINDOW, *one.shape[1:])
    a, b = (unit(maps.float(), 0.0)[:, None] for maps in (one, other))

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, side, stride=1)

    mean_a, mean_b = mean(a), mean(b)
    # The sample's covariances, as scikit-image has them.
    bessel = side * side / (side * side - 1) if side > 1 else 1.0
    var_a, var_b = bessel * (mean(a * a) - mean_a**2), bessel * (mean(b * b) - mean_b**2)
    both = bessel * (mean(a * b) - mean_a * mean_b)
    likeness = (2 * mean_a * mean_b + LUMINANCE) * (2 * both + CONTRAST)
    likeness = likeness / ((mean_a**2 + mean_b**2 + LUMINANCE) * (var_a + var_b + CONTRAST))
    return likeness.flatten(1).mean(1)


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's along the last dimension; NaN where one side does not vary."""
    one, other = (x.double() - x.double().mean(-1, keepdim=True) for x in (one, other))
    return ((one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1))).float()


def unit(maps: Tensor, even: float) -> Tensor:
    """Each map (B, ...) between its least and greatest value, in [0, 1]; ``even`` where it is the same everywhere."""
    flat = maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return torch.where(high > low, (flat - low) / (high - low), even).view_as(maps)
