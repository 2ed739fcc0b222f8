"""Raw attention: what one query token attends to in one layer."""

from __future__ import annotations

from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from ..attention_paths import attended, on_tokens, reading
from ..errors import OptionError
from ..heads import Head, one_head
from ..layer import Layer
from ..options import nth
from ..placed import descended, unmerged
from ..propagate import HeadFusion
from ..registry import method
from ..types import Trace


@method(
    paper="Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021",
    family="attention",
    means="How much one token, by default the one that the head reads, attends to each patch in one layer.",
    does_not_mean="Attention is no reason: a patch may be looked at and change nothing, because what is fetched from "
    "it is small or cancels. It shows one layer and does not depend on a class.",
    any_layout=True,
    needs={"attention"},
    class_specific=False,
)
def attention(
    trace: Trace,
    *,
    layer: int = -1,
    head: Head = "mean",
    query: tuple | int | Literal["readout"] = "readout",
) -> Tensor:
    """Attention of one query token over the patches, in one layer and head.

    ``map = A[layer][head][query, patches]``, (B, h, w); with its prefix tokens a row of one head, or of their mean,
    sums to one.

    ``layer``: block number from 0, or from the end when negative. ``head``: a number, or how to fuse the heads.
    ``query``: ``"readout"``, the row the head reads (class token; mean of the patches; the learned query of a pooling
    attention, which is then the layer); a patch as (row, column); or a token number, prefix tokens first.

    Where attention is windowed or pooled, the row is that of the token the head reads, or the mean of all, spread over
    the finest grid; a single patch's is not offered.
    """
    number = nth(layer, len(trace.layers), "attention", "layer")
    if trace.anatomy.plan is not None:
        return _placed(trace, number, head, query)
    call, rows, shares = reading(trace)
    if query != "readout":
        token = _token(trace, query)
        call, rows, shares = (
            trace.layers[number],
            slice(token, token + 1),
            torch.ones(1, dtype=torch.float32, device=shares.device),
        )
    elif trace.pool is None:
        call = trace.layers[number]
    elif number != len(trace.layers) - 1:
        raise OptionError(
            f"attention: this model reads through a pooling attention, so layer {layer} has no readout row; "
            "give a patch as query=(row, column)"
        )
    if not isinstance(head, str):
        head = nth(head, call.shape[1], "attention", "head")
    found = torch.zeros(call.shape[0], call.shape[3], dtype=torch.float32, device=call.device)
    for images, part in call.blocks(rows=rows):
        weights = shares[part.start - rows.start : part.stop - rows.start]
        found[images] += weights @ one_head(call.attention(images, part), head)
    return trace.patches(on_tokens(trace, found))


def _placed(trace: Trace, number: int, head: Head, query: tuple | int | str) -> Tensor:
    assert trace.anatomy.plan is not None
    if query != "readout":
        raise OptionError(f'attention: {trace.anatomy.plan.reason}; query must be "readout"')
    layer = trace.layers[number]
    assert layer.place is not None
    chosen = nth(head, layer.shape[1], "attention", "head") if isinstance(head, int) else None
    row = torch.zeros(len(trace.pixels), layer.place.leaving, dtype=torch.float32, device=layer.device)
    asking = [token for token in trace.anatomy.readout.tokens if (layer.place.queries == token).any()]
    row[:, asking or slice(trace.anatomy.plan.prefix, None)] = 1

    def weights(layer: Layer, images: slice, rows: slice) -> Tensor:
        heads = layer.attention(images, rows)
        return heads if chosen is None else heads[:, chosen, None]

    # A head alone, or each head where they are fused.
    fusion: HeadFusion = head if isinstance(head, str) else "mean"
    found = unmerged(layer, attended(layer, row / row.sum(1, keepdim=True), weights, fusion))
    return trace.patches(descended(trace.layers[:number], found))


def _token(trace: Trace, query: tuple | int | str) -> int:
    grid, prefix = trace.anatomy.grid, trace.anatomy.prefix
    if isinstance(query, tuple):
        fits = len(query) == 2 and all(isinstance(part, Integral) for part in query)
        if not fits or not (0 <= query[0] < grid[0] and 0 <= query[1] < grid[1]):
            raise OptionError(f"attention: query {query} is not on the {grid[0]}x{grid[1]} grid of patches")
        return prefix + query[0] * grid[1] + query[1]
    if not 0 <= int(query) < trace.length:
        raise OptionError(f"attention: query token {query} does not exist; tokens are 0 to {trace.length - 1}")
    return int(query)
