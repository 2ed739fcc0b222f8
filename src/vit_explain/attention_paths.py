"""What methods of attention times gradient share: sums over queries, products with ``I + Ā``, and gradients of the
attention that the head reads through, also averaged along a path of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .capture import with_gradient
from .errors import OptionError, TargetError
from .fused import Fusable, fuses
from .layer import ALL, Layer
from .matching import read_queries
from .placed import by_block, from_keys, skipped, unmerged, windowed
from .propagate import HeadFusion, Weights, fused_blocks
from .tap import AttentionTap
from .types import Inquiry, Readout, Trace

# What a look has to keep for ``read_attention``.
READ_NEEDS = ("attention", "tokens", "graph")


def _product(layer: Layer, images: slice, rows: slice) -> Tensor:
    return layer.attention_gradient(images, rows).mul_(layer.attention(images, rows))


def _positive_product(layer: Layer, images: slice, rows: slice) -> Tensor:
    return _product(layer, images, rows).clamp_(min=0)


def _positive_gradient(layer: Layer, images: slice, rows: slice) -> Tensor:
    return layer.attention_gradient(images, rows).clamp_(min=0)


def _guided(layer: Layer, images: slice, rows: slice) -> Tensor:
    return _positive_gradient(layer, images, rows).mul_(torch.sigmoid_(layer.scores(images, rows)))


plain = Fusable("attention", Layer.attention)  # A
product = Fusable("product", _product)  # A ⊙ ∂y/∂A
# Since A is never negative, the same as A ⊙ max(∂y/∂A, 0).
positive_product = Fusable("positive product", _positive_product)
positive_gradient = Fusable("positive gradient", _positive_gradient)
guided = Fusable("guided", _guided)  # max(∂y/∂A, 0) ⊙ sigmoid(scores)


def weighted_heads(layers: list[Layer], importance: Callable[[Layer], Tensor]) -> Weights:
    """``H w_h A_h``, so that the mean over heads is ``Σ_h w_h A_h``; ``w`` (B, H) is importance, made to sum to one."""
    shares = {}
    for layer in layers:
        found = importance(layer)
        total = found.sum(1, keepdim=True)
        # No gradient at all says nothing about heads.
        shares[layer.name] = torch.where(total > 0, found / total, 1 / found.shape[1]) * found.shape[1]

    def weights(layer: Layer, images: slice, rows: slice) -> Tensor:
        return layer.attention(images, rows) * shares[layer.name][images, :, None, None]

    return Fusable("attention", weights, shares)


def column_sums(layer: Layer, weights: Weights, rows: slice = ALL) -> Tensor:
    """``Σ_h Σ_i W[h, i, j]`` over heads and these queries: (B, M), without holding (B, H, N, M)."""
    sums = torch.zeros(layer.shape[0], layer.shape[3], dtype=torch.float32, device=layer.device)
    if fuses(weights, layer):
        for images, _, fused in fused_blocks(layer, rows, weights, "mean", whole=False):
            sums[images] += layer.shape[1] * fused.sum(1)
        return sums
    for images, part in layer.blocks(rows=rows):
        sums[images] += weights(layer, images, part).sum((1, 2))
    return sums


def fused_rows(layer: Layer, rows: slice, weights: Weights) -> Tensor:
    """``mean_h W`` of these queries: (B, rows, M)."""
    found = torch.empty(
        layer.shape[0], rows.stop - rows.start, layer.shape[3], dtype=torch.float32, device=layer.device
    )
    for images, part, fused in fused_blocks(layer, rows, weights, "mean", whole=False):
        found[images, part.start - rows.start : part.stop - rows.start] = fused
    return found


def accumulate(layers: list[Layer], rows: Tensor, weights: Weights, read: slice = ALL) -> Tensor:
    """``R (Π_l (I + Ā^l) − I)`` with ``Ā = mean_h W``: (B, queries, N) rows, carried from the last layer down.

    What the layers add to the rows; the rows themselves are left out, because beside them it would drown in rounding.
    ``read``: tokens outside of which the rows are zero, often all but the class token; below the last layer nearly none
    are.
    """
    gained = torch.zeros_like(rows)
    for calls in reversed(by_block(layers)):
        layer = calls[0]
        if layer.place is not None:
            rows, gained = _accumulate_placed(calls, rows, gained, weights)
            continue
        state = rows + gained
        needed = read if layer is layers[-1] else ALL
        for images, part, fused in fused_blocks(layer, needed, weights, "mean", whole=False):
            gained[images] += state[images, :, part] @ fused
    return gained


def _accumulate_placed(calls: list[Layer], rows: Tensor, gained: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The rows, and what they gained, below a block whose attention is windowed, pooled, of some queries alone, or
    several calls, whose mean counts."""
    below, first = [], calls[0]
    for row, more in zip(rows.unbind(1), gained.unbind(1), strict=True):
        given = torch.stack([attended(layer, row + more, weights) for layer in calls]).mean(0)
        below.append((unmerged(first, skipped(first, row)), unmerged(first, skipped(first, more) + given)))
    kept, added = zip(*below, strict=True)
    return torch.stack(kept, 1), torch.stack(added, 1)


def attended(layer: Layer, row: Tensor, weights: Weights, fusion: HeadFusion = "mean") -> Tensor:
    """``r fuse_h(W)`` through a placed block: (B, F) on the tokens that leave it -> (B, E) on those that enter it."""
    shares = windowed(layer, row)
    given = shares.new_zeros(len(shares), layer.shape[3])
    for images, part, fused in fused_blocks(layer, ALL, weights, fusion, whole=False):
        given[images] += torch.bmm(shares[images, part].unsqueeze(1), fused).squeeze(1)
    return from_keys(layer, given)


def reading(trace: Trace) -> tuple[Layer, slice, Tensor]:
    """The attention that the head reads through, which of its queries, and their weights (queries,), summing to one.

    A pooling attention with its learned queries; else that of the last block with the tokens that the head reads.
    """
    if trace.pool is not None:
        queries = trace.pool.shape[2]
        return (
            trace.pool,
            slice(0, queries),
            torch.full((queries,), 1 / queries, dtype=torch.float32, device=trace.logits.device),
        )
    return trace.layers[-1], trace.read_tokens, trace.read_row()[0, trace.read_tokens]


def on_tokens(trace: Trace, rows: Tensor) -> Tensor:
    """(..., keys) -> (..., N): a pooling attention may read the patch tokens alone."""
    return torch.nn.functional.pad(rows, (trace.length - rows.shape[-1], 0))


def start_of(trace: Trace, method: str, start_layer: int | None, default: int) -> int:
    """The block a product begins at, checked; ``default`` where none was given."""
    if start_layer is None:
        return default
    last = len(trace.anatomy.blocks if trace.anatomy.plan is None else trace.layers) - 1
    if not 0 <= start_layer <= last:
        raise OptionError(f"{method}: start_layer {start_layer} does not exist; the model has blocks 0 to {last}")
    return start_layer


def through_pool(inquiry: Inquiry, tokens: Tensor, readout: Readout) -> tuple[Layer, Any]:
    """What the model would return had ``tokens`` left its last block, and the pooling attention on the way there."""
    with AttentionTap(gradient=True, values=True) as tap:
        output = inquiry.lens(tokens)
    return read_queries(tap.layers[-1], readout), output


def gradient_of(values: Tensor, at: Tensor | None, upstream: Tensor | None = None) -> Tensor:
    """``∂ Σ values/∂at``, or with ``upstream`` of what becomes of the values; the graph is kept."""
    if not values.requires_grad:
        raise TargetError("the target does not depend on what the model sees, so there is nothing to explain")
    assert at is not None
    upstream = torch.ones_like(values) if upstream is None else upstream
    return torch.autograd.grad(values, at, upstream, retain_graph=True)[0]


def integrated_gradient(trace: Trace, steps: int) -> Tensor:
    """``mean_h max(mean_α ∂y/∂A, 0)`` at α times the pixels, α = 0 … 1 in so many steps: (B, queries, N).

    Of the attention and queries that ``reading`` names. The path starts at zero in normalised space. Each step is one
    forward, and one backward from the head to that attention, no deeper.
    """
    batch, (_, rows, _) = len(trace.pixels), reading(trace)
    points = torch.linspace(0, 1, steps, dtype=torch.float32, device=trace.pixels.device)
    gradients, values = [], []
    for some in points.split(trace.inquiry.room):
        scaled = trace.pixels.float().unsqueeze(1) * some.view(1, -1, 1, 1, 1)
        layer = read_attention(trace.inquiry.again(scaled.flatten(0, 1).to(trace.pixels.dtype), READ_NEEDS))
        assert layer.grad_out is not None and layer.v is not None
        gradients += layer.grad_out[:, :, rows].float().unflatten(0, (batch, len(some))).unbind(1)
        values += layer.v.detach().float().unflatten(0, (batch, len(some))).unbind(1)
        trace.inquiry.progress(len(gradients), steps)
    # The scores of this layer are the mean over steps of G_α V_αᵀ, and no (B, H, queries, M) is ever held.
    mean = Layer(1 / steps, q=torch.cat(gradients, 3), k=torch.cat(values, 3))
    return on_tokens(trace, fused_rows(mean, slice(0, mean.shape[2]), _positive_scores))


def _positive_scores(layer: Layer, images: slice, rows: slice) -> Tensor:
    return layer.scores(images, rows).clamp_(min=0)


def read_attention(look: Trace) -> Layer:
    """The attention that the head reads through, with its gradient and no other's; the look must be in the graph."""
    with torch.enable_grad():
        if look.pool is None:
            layer, output = look.layers[-1], look.inquiry.lens(look.tokens[-1])
        else:
            layer, output = through_pool(look.inquiry, look.tokens[-1], look.anatomy.readout)
        return with_gradient(layer, gradient_of(look.inquiry.value(output), layer.out))
