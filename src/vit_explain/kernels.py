"""The kernels of ``fused``. Importing this needs Triton."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64
KINDS = {"attention": 0, "product": 1, "positive product": 2, "positive gradient": 3, "guided": 4}


def mean_over_heads(
    q: Tensor,
    k: Tensor,
    gradient: Tensor | None,
    v: Tensor | None,
    scale: float,
    kind: str,
    shares: Tensor | None,
    precision: str,
) -> Tensor:
    """``mean_h W`` (B, N, M) float32 of q and gradient (B, H, N, ·), k and v (B, H, M, ·); ``kind``: see ``fused``."""
    batch, heads, n, d = q.shape
    m = k.shape[2]
    # Operands that a product takes as they are; what is not used is not read.
    g, w = (q, k) if gradient is None or v is None else (gradient, v)
    out = torch.empty(batch, n, m, device=q.device, dtype=torch.float32)
    sums = torch.empty(batch, heads, n, device=q.device, dtype=torch.float32)
    each = torch.ones(1, dtype=torch.float32, device=q.device) if shares is None else shares.float().contiguous()
    wide, wide_g = max(16, triton.next_power_of_2(d)), max(16, triton.next_power_of_2(g.shape[-1]))
    if kind not in ("positive gradient", "guided"):
        sum_up: Any = _log_sums[(triton.cdiv(n, TILE) * batch * heads,)]
        sum_up(q, k, sums, *q.stride(), *k.stride(), scale, heads, n, m, d, wide, TILE, precision)
    # One dimension, since the others hold no more than 65,535 blocks, and windows may be more.
    fuse: Any = _mean[(triton.cdiv(m, TILE) * triton.cdiv(n, TILE) * batch,)]
    fuse(
        q, k, g, w, sums, each, out, *q.stride(), *k.stride(), *g.stride(), *w.stride(),
        scale, heads, n, m, d, g.shape[-1], wide, wide_g, TILE, KINDS[kind], shares is not None, precision,
    )  # fmt: skip
    return out


@triton.jit
def _rows(pointer, row, number, stride, channels, stride_c, wide: tl.constexpr, tile: tl.constexpr):
    """(tile, wide) of rows of channels, zero beyond them."""
    rows = row + tl.arange(0, tile)
    columns = tl.arange(0, wide)
    inside = (rows[:, None] < number) & (columns[None, :] < channels)
    return tl.load(pointer + rows[:, None] * stride + columns[None, :] * stride_c, mask=inside, other=0.0)


@triton.jit
def _log_sums(
    q, k, sums, qb, qh, qn, qc, kb, kh, km, kc, scale, heads, n, m, d,
    wide: tl.constexpr, tile: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Each row's maximum plus the logarithm of the sum of exponentials of its scores."""
    tiles = tl.cdiv(n, tile)
    row, pair = tl.program_id(0) % tiles * tile, (tl.program_id(0) // tiles).to(tl.int64)
    image, head = pair // heads, pair % heads
    queries = _rows(q + image * qb + head * qh, row, n, qn, d, qc, wide, tile)
    top = tl.full((tile,), -float("inf"), tl.float32)
    total = tl.zeros((tile,), tl.float32)
    for key in range(0, m, tile):
        keys = _rows(k + image * kb + head * kh, key, m, km, d, kc, wide, tile)
        scores = tl.dot(queries, tl.trans(keys), input_precision=precision) * scale
        scores = tl.where((key + tl.arange(0, tile))[None, :] < m, scores, -float("inf"))
        new = tl.maximum(top, tl.max(scores, 1))
        total = total * tl.exp(top - new) + tl.sum(tl.exp(scores - new[:, None]), 1)
        top = new
    rows = row + tl.arange(0, tile)
    tl.store(sums + pair * n + rows, top + tl.log(total), mask=rows < n)


@triton.jit
def _mean(
    q, k, g, w, sums, shares, out, qb, qh, qn, qc, kb, kh, km, kc, gb, gh, gn, gc, wb, wh, wm, wc,
    scale, heads, n, m, d, dg,
    wide: tl.constexpr, wide_g: tl.constexpr, tile: tl.constexpr, kind: tl.constexpr, shared: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    """One tile of the mean over heads."""
    down, across = tl.cdiv(n, tile), tl.cdiv(m, tile)
    key, row = tl.program_id(0) % across * tile, tl.program_id(0) // across % down * tile
    image = (tl.program_id(0) // across // down).to(tl.int64)
    rows, columns = row + tl.arange(0, tile), key + tl.arange(0, tile)
    found = tl.zeros((tile, tile), tl.float32)
    for head in range(heads):
        weights = tl.full((tile, tile), 1.0, tl.float32)
        if kind != 3:
            queries = _rows(q + image * qb + head * qh, row, n, qn, d, qc, wide, tile)
            keys = _rows(k + image * kb + head * kh, key, m, km, d, kc, wide, tile)
            scores = tl.dot(queries, tl.trans(keys), input_precision=precision) * scale
            if kind == 4:
                weights = tl.sigmoid(scores)
            else:
                total = tl.load(sums + (image * heads + head) * n + rows, mask=rows < n, other=0.0)
                weights = tl.exp(scores - total[:, None])
        if kind != 0:
            upstream = _rows(g + image * gb + head * gh, row, n, gn, dg, gc, wide_g, tile)
            values = _rows(w + image * wb + head * wh, key, m, wm, dg, wc, wide_g, tile)
            weights = weights * tl.dot(upstream, tl.trans(values), input_precision=precision)
        if kind > 1:
            weights = tl.maximum(weights, 0.0)
        if shared:
            weights = weights * tl.load(shares + image * heads + head)
        found += weights
    inside = (rows[:, None] < n) & (columns[None, :] < m)
    tl.store(out + (image * n + rows[:, None]) * m + columns[None, :], found / heads, mask=inside)
