"""What attention adds to a token, as vectors, one a token it looks at: ``T_i(x_j) = Σ_h A^h_ij u^h_j + δ_ij x_j``.

``u^h_j = W_O^h v^h_j`` is what head h would write of token j into the residual stream, and x_i is what is already
there. In a ViT whose norms lie before attention this is the whole sum, apart from the bias of the projection, which
comes from no token: ``x_i + attention_i = Σ_j T_i(x_j) + bias``. All N² vectors of D numbers are never held at once;
for their 2-norms they are not needed: ``‖Σ_h a_h u^h‖² = aᵀ G a`` with the (H, H) matrix ``G = u uᵀ`` of each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .layer import Layer, block_elements
from .propagate import pooled_row
from .types import Trace

# (number of a layer, rows) -> (images, rows, (b, rows, M) of no negative numbers), block by block
Contributions = Callable[[int, slice], Iterator[tuple[slice, slice, Tensor]]]


def written(layer: Layer, projection: Tensor, images: slice, keys: slice) -> Tensor:
    """``u^h_j`` for these images and keys: (images, keys, H, D), from ``W_O`` (D, H·Dv)."""
    assert layer.v is not None
    values = layer.v.detach()[images, :, keys].float()  # (b, H, keys, Dv)
    heads = projection.unflatten(1, (values.shape[1], values.shape[3])).permute(1, 2, 0)  # (H, Dv, D)
    return (values @ heads).transpose(1, 2)


def grams(layer: Layer, projection: Tensor, tokens: Tensor | None = None) -> Tensor:
    """``G_j = u_j u_jᵀ``, (B, M, H, H); with tokens x (B, M, D), x_j is one more vector, the last: (B, M, H+1, H+1)."""
    batch, heads, _, keys = layer.shape
    vectors_each = heads + (tokens is not None)
    gram = torch.empty(batch, keys, vectors_each, vectors_each, dtype=torch.float32, device=layer.device)
    step = max(1, 4 * block_elements(layer.device) // (heads * len(projection)))
    for image in range(batch):
        for first in range(0, keys, step):
            one, some = slice(image, image + 1), slice(first, first + step)
            vectors = written(layer, projection, one, some)
            if tokens is not None:
                vectors = torch.cat([vectors, tokens[one, some].unsqueeze(2)], 2)
            gram[one, some] = vectors @ vectors.transpose(2, 3)
    return gram


def squared_norms(weights: Tensor, gram: Tensor) -> Tensor:
    """``‖Σ_h a^h_ij u^h_j‖²`` from a (b, H, rows, M) and G (b, M, H, H): (b, rows, M)."""
    weights = weights.permute(0, 3, 2, 1)  # (b, M, rows, H)
    return ((weights @ gram) * weights).sum(3).transpose(1, 2)


def roll_contributions(trace: Trace, contributions: Contributions) -> Tensor:
    """The read row (B, N) carried from the last layer to the first, each token's contributions summing to one."""
    row, last = pooled_row(trace, Layer.attention, "mean"), len(trace.layers) - 1
    for number in reversed(range(len(trace.layers))):
        below = torch.zeros_like(row)
        read = trace.read_tokens if number == last else slice(0, trace.length)
        for images, rows, matrix in contributions(number, read):
            below[images] += _carry(row[images, rows], matrix, rows.start)
        row = below
    return row


def _carry(row: Tensor, matrix: Tensor, first: int) -> Tensor:
    """``r · C / row sums``: (b, rows) and (b, rows, M) -> (b, M); a token without any contribution keeps itself."""
    matrix.diagonal(first, 1, 2).add_(torch.finfo(matrix.dtype).tiny)
    return torch.bmm((row / matrix.sum(2)).unsqueeze(1), matrix).squeeze(1)
