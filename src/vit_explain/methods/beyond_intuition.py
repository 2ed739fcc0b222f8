"""Beyond Intuition: bidirectional relevance of heads or of tokens."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from ..attention_paths import (
    accumulate,
    fused_rows,
    integrated_gradient,
    on_tokens,
    reading,
    start_of,
    weighted_heads,
)
from ..layer import Layer
from ..options import Range
from ..propagate import Weights
from ..registry import method
from ..types import Trace


@method(
    paper="Chen et al., Beyond Intuition: Rethinking Token Attributions inside Transformers, TMLR 2023",
    family="attention × gradient",
    means="How tokens are mixed up to the last layer, times how much attention to them there raises the score, on "
    "average along a path from an empty image.",
    does_not_mean="It leaves out the MLPs and evidence against the class, and depends on where the path starts, mean "
    "grey for most models. The numbers do not add up to the score.",
    needs={"attention", "probe"},
    needs_also=lambda *, variant, **_: {"gradient"} if variant == "head" else {"tokens", "values"},
    forwards=21,
    backwards=21,
    class_specific=True,
    read_rows_suffice=lambda **_: True,
)
def beyond_intuition(
    trace: Trace,
    *,
    variant: Literal["head", "token"] = "head",
    steps: Annotated[int, Range(2)] = 20,
    start_layer: int | None = None,
) -> Tensor:
    """How tokens are mixed up to the last layer, times integrated attention gradients of the class there.

    ``R = (I + Â_L) … (I + Â_s)``, ``W = mean_h max(1/steps Σ_α ∂y(α x)/∂A_L[h], 0)``, ``map = (W ⊙ R)[r]`` at the
    patches, (B, h, w), r the token that the head reads; where it reads several, the weighted mean of their rows.
    A pooling attention is a last Â whose rows are its learned queries, and W is its gradient.

    ``variant``: ``"head"``: ``Â = Σ_h I_h A_h``, ``I_h = mean |A_hᵀ ∂y/∂A_h|`` over all entries, made to sum to one.
    ``"token"``: ``Â[i, j] = mean_h A_h[i, j] · ‖v_j W_O‖ / ‖x_j‖``, with x what enters the block and v_j the values of
    all heads; layer scale counts as part of W_O; a pooling attention is taken plainly. ``steps``: points on the path
    from a zero image (in normalised space). ``start_layer``: block s, from 0, at which the product begins; by default a
    quarter of the depth (head) or a half (token), as the authors' code does with 3 and 6 of 12.
    """
    depth = len(trace.layers)
    start = start_of(trace, "beyond_intuition", start_layer, depth // 4 if variant == "head" else depth // 2)
    layers = trace.layers[start:]
    calls = layers if trace.pool is None else [*layers, trace.pool]
    weights = weighted_heads(calls, _importance) if variant == "head" else _by_tokens(trace, start)
    layer, rows, shares = reading(trace)
    if trace.pool is None:
        own = torch.zeros(rows.stop - rows.start, trace.length, dtype=torch.float32, device=trace.logits.device)
        own[:, rows] = torch.eye(rows.stop - rows.start, dtype=torch.float32, device=own.device)
        states = own.repeat(len(trace.pixels), 1, 1)
    else:
        states = on_tokens(trace, fused_rows(layer, rows, weights))
    states += accumulate(layers, states, weights, trace.read_tokens)
    states *= integrated_gradient(trace, steps)
    return trace.patches((states * shares[:, None]).sum(1))


def _importance(layer: Layer) -> Tensor:
    """``mean |A_hᵀ ∂y/∂A_h|`` over all M×M entries: (B, H); as ``(A_hᵀ ∂y/∂out) Vᵀ``, in blocks."""
    assert layer.grad_out is not None and layer.v is not None
    batch, heads, _, keys = layer.shape
    mixed = torch.zeros(layer.v.shape, dtype=torch.float32, device=layer.device)
    for images, rows in layer.blocks():
        mixed[images] += layer.attention(images, rows).mT @ layer.grad_out[images, :, rows].float()
    products = Layer(1.0, q=mixed, k=layer.v)  # whose scores are mixed Vᵀ
    total = torch.zeros(batch, heads, dtype=torch.float32, device=layer.device)
    for images, rows in products.blocks():
        total[images] += products.scores(images, rows).abs_().sum((2, 3))
    return total / keys**2


def _by_tokens(trace: Trace, start: int) -> Weights:
    lengths = {
        id(trace.layers[number]): _stretched(trace, number)[:, None, None] for number in range(start, len(trace.layers))
    }

    def weights(layer: Layer, images: slice, rows: slice) -> Tensor:
        attention = layer.attention(images, rows)
        return attention * lengths[id(layer)][images] if id(layer) in lengths else attention

    return weights


def _stretched(trace: Trace, number: int) -> Tensor:
    """``‖v_j W_O‖ / ‖x_j‖``, and 0 for a token that is zero: (B, N)."""
    values = trace.layers[number].v
    assert values is not None
    projected = values.float().transpose(1, 2).flatten(2) @ trace.inquiry.projection(number).T
    length = trace.tokens[number].float().norm(dim=-1)
    return torch.where(length > 0, projected.norm(dim=-1) / length, 0)
