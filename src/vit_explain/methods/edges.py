"""A baseline: edges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pixel_paths import Level, on_level
from ..registry import method
from ..types import Trace


@method(
    paper="a baseline; Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018",
    family="baselines",
    means="Where the picture has edges, found without any model.",
    does_not_mean="It says nothing of the model: a map that resembles it may look right and explain nothing.",
    needs=(),
    class_specific=False,
)
def edges(trace: Trace, *, level: Level = "patches") -> Tensor:
    """Edges in the picture, found without any model: a map may look right and be no more than this.

    Magnitude of the Sobel gradient, ``√(gx² + gy²)``, of the mean over the channels of the pixels as the model gets
    them; the outermost pixels are repeated around the picture. (B, H, W), or averaged over each patch, (B, h, w).
    """
    grey = F.pad(trace.pixels.detach().float().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=grey.dtype, device=grey.device)
    gradient = F.conv2d(grey, torch.stack([across, across.T])[:, None])  # (B, 2, H, W)
    return on_level(trace, gradient.square().sum(1).sqrt(), level, "mean")
