"""Rollout arithmetic: fuse heads, discard, add the residual, and carry the read row down.

A rollout is a product of N×N matrices of which only the read row is wanted, so the row travels from the last block
to the first, ``r ← r Ã``: O(L N²) instead of O(L N³), and no N×N×N product anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import torch
from torch import Tensor

from .errors import OptionError
from .fused import fused_mean, fuses
from .layer import ALL, Layer, block_elements
from .options import Range
from .placed import by_block, from_keys, skipped, unmerged, unwindowed, windowed
from .selection import zero_lowest
from .types import Trace

HeadFusion = Literal["mean", "min", "max"]
DiscardRatio = Annotated[float, Range(0.0, 1.0, below=True)]

# (layer, images, rows) -> (images, H, rows, M): attention, or attention times its gradient; see ``fused.Fusable``
Weights = Callable[[Layer, slice, slice], Tensor]


def fuse(heads: Tensor, fusion: HeadFusion, out: Tensor | None = None) -> Tensor:
    """(b, H, rows, M) -> (b, rows, M)."""
    if fusion == "mean":
        return torch.mean(heads, 1, out=out)
    return torch.amax(heads, 1, out=out) if fusion == "max" else torch.amin(heads, 1, out=out)


def discard_lowest(fused: Tensor, ratio: float, protected: tuple[int, ...] = ()) -> Tensor:
    """``discard(max(M, 0))``, in place: zero negatives and the ``int(ratio · N · M)`` lowest entries of each matrix.

    ``fused``: (b, N, M). An entry equal to the smallest kept one is kept, so equal entries share one fate and the order
    of tokens does not matter. The diagonal entries of ``protected`` tokens are zeroed only where they are negative.
    """
    flat = fused.flatten(1)
    dropped = int(ratio * flat.shape[1])
    if not dropped:
        return fused.clamp_(min=0)
    own = [fused[:, token, token].clamp(min=0) for token in protected]
    zero_lowest(flat, dropped)
    for token, kept in zip(protected, own, strict=True):
        fused[:, token, token] = kept
    return fused


def carry(row: Tensor, matrix: Tensor, first: int = 0) -> Tensor:
    """``row[:, rows] · Ã[rows]`` with ``Ã = (M + I) / row sums`` for M ≥ 0: (b, rows) and (b, rows, N) -> (b, N).

    ``first``: which token the block's first row belongs to.
    """
    weight = row / (matrix.sum(-1) + 1)
    out = torch.bmm(weight.unsqueeze(1), matrix).squeeze(1)
    out[:, first : first + row.shape[1]] += weight
    return out


def roll_out(
    layers: list[Layer],
    row: Tensor,
    weights: Weights,
    fusion: HeadFusion,
    discard_ratio: float,
    protected: tuple[int, ...] = (),
    read: slice = ALL,
) -> Tensor:
    """Carry the read row (B, N) from the last layer to the first: ``r Ã_L … Ã_1``, (B, N).

    ``Ã = rownorm(discard(max(fuse(W), 0)) + I)`` with ``W = weights(layer, …)``; rows are normalised *after* the
    residual is added. Where attention stays in windows, each window's matrix is one of its own, also for discarding.
    Of calls side by side the mean of the matrices ``discard(max(fuse(W), 0))`` counts. ``read``: tokens outside of
    which the read row is zero, often all but the class token.
    """
    for calls in reversed(by_block(layers)):
        layer = calls[0]
        if layer.place is not None:
            row = _roll_out_placed(calls, row, weights, fusion, discard_ratio)
            continue
        below = torch.zeros_like(row)
        rows = read if layer is layers[-1] and discard_ratio == 0 else ALL
        for images, part, fused in fused_blocks(layer, rows, weights, fusion, whole=discard_ratio > 0):
            discard_lowest(fused, discard_ratio, protected)
            below[images] += carry(row[images, part], fused, part.start)
            del fused  # before the next one is made: at 4,097 tokens each holds 67 MB
        row = below
    return row


def _roll_out_placed(
    calls: list[Layer], row: Tensor, weights: Weights, fusion: HeadFusion, discard_ratio: float
) -> Tensor:
    """``roll_out`` through one block whose attention is windowed, pooled, of some queries alone, or several calls."""
    alone = len(calls) == 1
    # What a row is divided by is known once all calls are; of a single one, while it goes by.
    left = row if alone else row / (_row_sums(calls, row, weights, fusion, discard_ratio) + 1)
    below = torch.zeros(len(row), calls[0].place.entering, dtype=torch.float32, device=row.device)  # type: ignore[union-attr]
    for layer in calls:
        shares = windowed(layer, left)
        given = shares.new_zeros(len(shares), layer.shape[3])
        for images, part, fused in fused_blocks(layer, ALL, weights, fusion, whole=discard_ratio > 0):
            discard_lowest(fused, discard_ratio)
            if alone:
                shares[images, part] /= fused.sum(-1) + 1
            given[images] += torch.bmm(shares[images, part].unsqueeze(1), fused).squeeze(1)
            del fused
        below += from_keys(layer, given) / len(calls)
        left = unwindowed(layer, shares, left)
    return unmerged(calls[0], below + skipped(calls[0], left))


def _row_sums(calls: list[Layer], row: Tensor, weights: Weights, fusion: HeadFusion, discard_ratio: float) -> Tensor:
    """Of each leaving token (B, F), the sum of its row in the mean of the calls' matrices."""
    sums = torch.zeros_like(row)
    for layer in calls:
        own = windowed(layer, torch.zeros_like(row))
        for images, part, fused in fused_blocks(layer, ALL, weights, fusion, whole=discard_ratio > 0):
            own[images, part] = discard_lowest(fused, discard_ratio).sum(-1)
        sums += unwindowed(layer, own, torch.zeros_like(row)) / len(calls)
    return sums


def fused_blocks(
    layer: Layer, rows: slice, weights: Weights, fusion: HeadFusion, *, whole: bool, images: slice = ALL
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(images, rows, fuse(W) (b, rows, M)), block by block; ``whole``: an image's rows are never parted."""
    batch, _, n, m = layer.shape
    left, right, _ = images.indices(batch)
    first, last, _ = rows.indices(n)
    elements = 4 * block_elements(layer.device)  # without heads; several blocks of derived attention each
    step = max(1, elements // (m * max(1, last - first)))
    height = last - first if whole else max(1, elements // m)
    for start in range(left, right, step):
        images = slice(start, min(start + step, right))
        for top in range(first, last, height):
            part = slice(top, min(top + height, last))
            if fusion == "mean" and fuses(weights, layer):
                yield images, part, fused_mean(layer, images, part, weights)
                continue
            fused = torch.empty(images.stop - start, part.stop - top, m, dtype=torch.float32, device=layer.device)
            for some, few in layer.blocks(images, part):
                place = fused[some.start - start : some.stop - start, few.start - top : few.stop - top]
                fuse(weights(layer, some, few), fusion, out=place)
            yield images, part, fused


def pooled_row(trace: Trace, weights: Weights, fusion: HeadFusion) -> Tensor:
    """The row (B, N) that the head reads the last block with: fixed, or the fused row of a pooling attention."""
    if trace.pool is None:
        return trace.read_row()
    row = fuse(weights(trace.pool, ALL, ALL), fusion).clamp_(min=0).mean(1)
    return trace.pooled(row / row.sum(1, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny))


def protected_tokens(trace: Trace) -> tuple[int, ...]:
    """Tokens whose own entry is never discarded: those the head reads, where it reads single tokens."""
    return trace.anatomy.readout.tokens


def legacy_roll_out(
    trace: Trace, weights: Weights, fusion: HeadFusion, discard_ratio: float, *, keep_first: bool
) -> Tensor:
    """The original script's rollout, faults included, read at token 0: (B, N).

    ``a = (discard(max(fuse(W), 0)) + I) / 2``, then column j is divided by the sum of row j (it lacks ``keepdim``).
    ``keep_first``: whether the very first entry is spared by discarding (attention rollout spares it, gradient
    rollout does not). Clamping at zero changes nothing for attention, which is never negative.
    """
    if trace.anatomy.plan is not None:
        raise OptionError(f"{trace.anatomy.plan.reason}, which legacy, the original script's way, is not defined for")
    if not trace.anatomy.prefix:
        raise OptionError(
            "legacy reads the class token's row, as the original script did; this model has no class token"
        )
    row = torch.zeros(len(trace.pixels), trace.length, dtype=torch.float32, device=trace.logits.device)
    row[:, 0] = 1
    for layer in reversed(trace.layers):
        below = torch.empty_like(row)
        for images, _, fused in fused_blocks(layer, ALL, weights, fusion, whole=True):
            flat = fused.clamp_(min=0).flatten(1)
            first = flat[:, 0].clone()
            lowest = flat.topk(int(flat.shape[1] * discard_ratio), 1, largest=False).indices
            flat.scatter_(1, lowest, 0.0)
            if keep_first:
                flat[:, 0] = first
            halved = (fused + torch.eye(fused.shape[-1], dtype=torch.float32, device=fused.device)) / 2
            below[images] = (row[images].unsqueeze(1) @ (halved / halved.sum(-1).unsqueeze(1))).squeeze(1)
        row = below
    return row
