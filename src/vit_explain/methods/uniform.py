"""A baseline: the same everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import method
from ..types import Trace


@method(
    paper="a baseline, from no paper",
    family="baselines",
    means="Nothing: the same number at every patch.",
    does_not_mean="It puts no patch above another, so it agrees and disagrees with no map.",
    needs=(),
    class_specific=False,
)
def uniform(trace: Trace) -> Tensor:
    """One at every patch: what a metric says of a map that says nothing.

    (B, h, w). Metrics that rank patches meet only ties here; what they make of them is theirs.
    """
    return torch.ones(len(trace.pixels), *trace.anatomy.grid, dtype=torch.float32, device=trace.pixels.device)
