"""TokenTM."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention_paths import fused_rows, on_tokens, positive_product, reading
from ..errors import ModelError
from ..layer import ALL, Layer
from ..propagate import Weights, fused_blocks
from ..registry import method
from ..types import Trace


@method(
    paper="Wu et al., Token Transformation Matters: Towards Faithful Post-hoc Explanation for Vision Transformer, "
    "CVPR 2024",
    family="attention × gradient",
    means="Positive attention times gradient through all layers, weighted by how much longer tokens become and how "
    "much of their direction they keep.",
    does_not_mean="How a token changes says nothing of the class by itself, and evidence against it is dropped. The "
    "formulas could not be checked against the paper or its code, so the authors' maps may differ.",
    needs={"attention", "tokens", "attended", "gradient"},
    backwards=1,
    beyond_passes="what each head would write of every token, and how it lies to the token, in every block",
    class_specific=True,
    read_rows_suffice=lambda **_: True,
)
def token_tm(trace: Trace) -> Tensor:
    """Positive attention times gradient through all layers, weighted by how tokens change on the way.

    A token x that becomes t weighs ``w(x, t) = ‖t‖/‖x‖ · exp(cos(x, t)) / mean over tokens of exp(cos)``. From
    ``C = diag(‖x_j‖)`` over what enters the first block, ``C ← C + U C`` for the attention of every block, with
    ``U = mean_h max(A_h ⊙ ∂y/∂A_h, 0) diag(w(x, v_h W_O_h))``, and for its MLP, with ``U = diag(w(x, MLP's output))``;
    the map is the row of C that the head reads, at the patches, (B, h, w). x is the residual stream before each of
    them; layer scale counts as part of W_O and of the MLP. A pooling attention is a last U without w.

    The paper's formulas were recalled, not read, and there is no public code: that x is taken before the layer norm,
    the mean in the denominator, and the use of both C ← C + U C steps could not be verified.
    """
    if not trace.attended:
        raise ModelError(
            "token_tm needs the tokens between attention and MLP, which this model does not show; use gae instead"
        )
    if trace.pool is None:
        row = trace.read_row()
    else:
        pool, queries, _ = reading(trace)
        row = on_tokens(trace, fused_rows(pool, queries, positive_product)).mean(1)
    last = len(trace.layers) - 1
    for number in reversed(range(len(trace.layers))):
        before, after = trace.tokens[number].float(), trace.tokens[number + 1].float()
        between = before + trace.attended[number].float()
        added = after - between
        row = row * (1 + _weight(between.norm(dim=-1), added.norm(dim=-1), (between * added).sum(-1)))
        rows = trace.read_tokens if number == last else ALL
        row = row + _attended(trace.layers[number], row, rows, _transformed(trace, number, before))
    return trace.patches(row * trace.tokens[0].float().norm(dim=-1))


def _attended(layer: Layer, row: Tensor, rows: slice, weights: Weights) -> Tensor:
    """``r U``: (B, N), of a row that is zero outside of these tokens."""
    found = torch.zeros_like(row)
    for images, part, fused in fused_blocks(layer, rows, weights, "mean", whole=False):
        found[images] += (row[images, None, part] @ fused).squeeze(1)
    return found


def _transformed(trace: Trace, number: int, tokens: Tensor) -> Weights:
    """``max(A_h ⊙ ∂y/∂A_h, 0) diag(w_h)``."""
    values = trace.layers[number].v
    assert values is not None
    heads = values.shape[1]
    # Lengths and products are taken in a head's own Dv dimensions, never as (B, H, N, D).
    together = trace.inquiry.projection(number)  # (D, H·Dv)
    projection = together.unflatten(1, (heads, -1)).transpose(0, 1)  # (H, D, Dv)
    values = values.float()
    lengths = ((values @ (projection.mT @ projection)) * values).sum(-1).clamp_(min=0).sqrt_()
    products = ((tokens @ together).unflatten(2, (heads, -1)).transpose(1, 2) * values).sum(-1)
    weight = _weight(tokens.norm(dim=-1)[:, None], lengths, products)

    def weights(layer: Layer, images: slice, rows: slice) -> Tensor:
        return positive_product(layer, images, rows).mul_(weight[images, :, None])

    return weights


def _weight(before: Tensor, after: Tensor, products: Tensor) -> Tensor:
    """``w`` from the lengths of x and t and from x · t, each (..., N); 0 where x is zero."""
    tiny = torch.finfo(before.dtype).tiny
    alike = torch.exp(products / (before * after).clamp_min(tiny))
    return torch.where(before > 0, after / before, 0) * alike / alike.mean(-1, keepdim=True)
