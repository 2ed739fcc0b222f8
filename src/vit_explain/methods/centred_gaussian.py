"""A baseline: the middle of the picture."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..options import Range
from ..registry import method
from ..types import Trace


@method(
    paper="a baseline; Judd et al., Learning to Predict Where Humans Look, ICCV 2009",
    family="baselines",
    means="That photographers put their subject in the middle: a bell around the centre, the same for every picture.",
    does_not_mean="It looks at neither the picture nor the model; a method that does no better has shown nothing.",
    needs=(),
    class_specific=False,
)
def centred_gaussian(trace: Trace, *, sigma: Annotated[float, Range(0.01, 100.0)] = 0.5) -> Tensor:
    """A bell around the centre, the same for every picture: photographers put their subject there.

    ``map = exp(−(y² + x²) / 2σ²)`` at the centres of the patches, with y and x from −1 to 1 over the grid, (B, h, w).

    ``sigma``: width of the bell; 1 is half of the picture.
    """
    down, right = (
        (torch.arange(size, device=trace.pixels.device) * 2 + 1) / size - 1  # centres of the patches
        for size in trace.anatomy.grid
    )
    bell = torch.exp(-(down[:, None].square() + right.square()) / (2 * sigma**2))
    return bell.expand(len(trace.pixels), -1, -1).clone()
