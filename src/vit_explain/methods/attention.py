"""Raw attention: what one query token attends to in one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

from torch import Tensor

from ..errors import OptionError
from ..registry import method
from ..types import Layer, Trace

T = TypeVar("T")


@method(
    paper="Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021",
    family="attention",
    means="How much one token, by default the one that the head reads, attends to each patch in one layer.",
    does_not_mean="Attention is no reason: a patch may be looked at and change nothing, because what is fetched from "
    "it is small or cancels. It shows one layer and does not depend on a class.",
    needs={"attention"},
    class_specific=False,
)
def attention(
    trace: Trace,
    *,
    layer: int = -1,
    head: int | Literal["mean", "max", "min"] = "mean",
    query: tuple | int | Literal["readout"] = "readout",
) -> Tensor:
    """Attention of one query token over the patches, in one layer and head.

    ``map = A[layer][head][query, patches]``, (B, h, w); with its prefix tokens a row sums to one.

    ``layer``: block number from 0, or from the end when negative. ``head``: a number, or how to fuse the heads.
    ``query``: ``"readout"``, the row the head reads (class token; mean of the patches; the learned query of a pooling
    attention, which is then the layer); a patch as (row, column); or a token number, prefix tokens first.
    """
    layers, pool = trace.layers, trace.pool
    chosen = _pick(layers, layer, "layer", "layers")
    if query == "readout" and pool is not None:
        if layer not in (-1, len(layers) - 1):
            raise OptionError(
                f"attention: this model reads through a pooling attention, so layer {layer} has no readout row; "
                "give a patch as query=(row, column)"
            )
        return trace.patches(trace.pooled(_head(pool, head).mean(1)))
    rows = _head(chosen, head)
    if query == "readout":
        return trace.patches((trace.read_row().unsqueeze(1) @ rows).squeeze(1))
    return trace.patches(rows[:, _token(trace, query)])


def _head(layer: Layer, head: int | str) -> Tensor:
    """(B, queries, keys) of one head, or of all of them fused."""
    heads = layer.attention()
    if isinstance(head, str):
        return {"mean": heads.mean, "max": heads.amax, "min": heads.amin}[head](1)
    _pick(range(heads.shape[1]), head, "head", "heads")
    return heads[:, head]


def _pick(things: Sequence[T], number: int, one: str, many: str) -> T:
    if not -len(things) <= number < len(things):
        raise OptionError(f"attention: {one} {number} does not exist; the model has {many} 0 to {len(things) - 1}")
    return things[number]


def _token(trace: Trace, query: tuple | int | str) -> int:
    grid, prefix = trace.anatomy.grid, trace.anatomy.prefix
    if isinstance(query, tuple):
        if len(query) != 2 or not (0 <= query[0] < grid[0] and 0 <= query[1] < grid[1]):
            raise OptionError(f"attention: query {query} is not on the {grid[0]}x{grid[1]} grid of patches")
        return prefix + query[0] * grid[1] + query[1]
    if not 0 <= int(query) < trace.length:
        raise OptionError(f"attention: query token {query} does not exist; tokens are 0 to {trace.length - 1}")
    return int(query)
