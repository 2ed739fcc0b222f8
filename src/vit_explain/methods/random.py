"""A baseline: noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ..options import Seed
from ..registry import method
from ..seeds import own_generator
from ..types import Trace


@method(
    paper="a baseline; Hooker et al., A Benchmark for Interpretability Methods in Deep Neural Networks, NeurIPS 2019",
    family="baselines",
    means="Nothing: independent noise at each patch, which any method must beat.",
    does_not_mean="It looks at neither the model nor what the picture shows.",
    needs=(),
    class_specific=False,
    beyond_passes="a hash of every pixel, so that the noise is the picture's own",
)
def random(trace: Trace, *, seed: Seed = 0) -> Tensor:
    """Independent uniform noise at each patch: what any method must beat.

    Numbers in [0, 1), (B, h, w). They depend on ``seed`` and on the image's pixels, not on its place in a batch: the
    same image gets the same map again, and two images get different ones, as a fair comparison over images needs.
    """
    maps = [torch.rand(trace.anatomy.grid, generator=own_generator(image, seed)) for image in trace.pixels]
    return torch.stack(maps).to(trace.pixels.device)
