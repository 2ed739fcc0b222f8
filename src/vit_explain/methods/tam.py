"""Transition attention maps."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from ..attention_paths import accumulate, fused_rows, integrated_gradient, on_tokens, plain, reading, start_of
from ..options import Range
from ..registry import method
from ..types import Trace


@method(
    paper="Yuan et al., Explaining Information Flow Inside Vision Transformers Using Markov Chain, NeurIPS 2021 "
    "workshop",
    family="attention × gradient",
    means="How much of the head's attention leads down to each patch, times how much attention to it in the last layer "
    "raises the score, on average along a path from an empty image.",
    does_not_mean="The gradient is the last layer's alone and depends on where the path starts, mean grey for most "
    "models. Evidence against the class is dropped, and the numbers do not add up to the score.",
    needs={"attention", "probe"},
    forwards=21,
    backwards=20,
    class_specific=True,
    read_rows_suffice=lambda **_: True,
)
def tam(trace: Trace, *, steps: Annotated[int, Range(2)] = 20, start_layer: int | None = None) -> Tensor:
    """Attention carried from the read token down the layers as a Markov chain, times integrated attention gradients.

    ``s = Ē_L[r]``, then ``s ← s Ē_l + s`` from the layer below the last down to ``start_layer``, with ``Ē`` the mean
    over heads; ``W = mean_h max(1/steps Σ_α ∂y(α x)/∂A_L[h, r], 0)``; ``map = s ⊙ W`` at the patches, (B, h, w). r is
    the token that the head reads; where it reads several, each has its own s and W, and the map is their weighted mean.
    A pooling attention takes the place of A_L, above all blocks.

    ``steps``: points on the path from a zero image (in normalised space) to the image; gradients are averaged before
    negative ones are dropped. ``start_layer``: block from 0 where the chain ends; by default a third of the depth, as
    the authors' code does with 4 of 12.
    """
    layer, rows, shares = reading(trace)
    start = start_of(trace, "tam", start_layer, len(trace.layers) // 3)
    states = on_tokens(trace, fused_rows(layer, rows, plain))
    below = trace.layers[start : len(trace.layers) - (trace.pool is None)]
    states += accumulate(below, states, plain)
    states *= integrated_gradient(trace, steps)
    return trace.patches((states * shares[:, None]).sum(1))
