"""Numbers of single query tokens and heads: which head, or how the heads' numbers become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .layer import ALL
from .options import nth
from .types import Trace

Head = int | Literal["mean", "max", "min"]

# (attention (images, H, rows, M), rows) -> (images, H, rows)
Measure = Callable[[Tensor, slice], Tensor]


def of_patches(trace: Trace, layer: int, head: Head, measure: Measure, method: str) -> Tensor:
    """What ``measure`` finds of each patch's row of attention in one layer: (B, h, w), of one head or of all fused.

    Heads are measured one by one and their numbers fused, since a number of fused attention is another number: the
    mean of two heads that each look at one patch looks at two.
    """
    call = trace.layers[nth(layer, len(trace.layers), method, "layer")]
    batch, heads, queries, _ = call.shape
    if not isinstance(head, str):
        head = nth(head, heads, method, "head")
    found = torch.empty(batch, queries, dtype=torch.float32, device=call.device)
    for images, rows in call.blocks(ALL, slice(trace.anatomy.prefix, queries)):
        numbers = measure(call.attention(images, rows), rows)
        found[images, rows] = one_head(numbers, head)
    return trace.patches(found)


def one_head(numbers: Tensor, head: Head) -> Tensor:
    """(images, H, ...) -> (images, ...): those of one head, or of all heads fused."""
    if isinstance(head, int):
        return numbers[:, head]
    return {"mean": numbers.mean, "max": numbers.amax, "min": numbers.amin}[head](1)
