"""Grad-CAM on attention."""

from __future__ import annotations

import math

from torch import Tensor

from ..attention_paths import READ_NEEDS, column_sums, on_tokens, read_attention, reading
from ..layer import Layer
from ..registry import method
from ..types import Trace


@method(
    paper="Chefer, Gur and Wolf, Transformer Interpretability Beyond Attention Visualization, CVPR 2021 (a baseline "
    "there; Selvaraju et al., Grad-CAM, ICCV 2017)",
    family="attention × gradient",
    means="Where the last attention looks, its heads weighted by whether more of their attention would raise or lower "
    "the score.",
    does_not_mean="A head's weight is one number, its mean gradient: all patches of a head speak for the class, or all "
    "against. It shows one layer, whose tokens have already gathered from elsewhere.",
    needs=READ_NEEDS,
    backwards=1,
    class_specific=True,
    hardly_class_specific="one weight a head, its mean gradient over all patches, for the last attention alone: little "
    "of the class's place is left",
    signed=True,
    read_rows_suffice=lambda **_: True,
)
def attn_gradcam(trace: Trace) -> Tensor:
    """Grad-CAM with the last layer's attention heads as channels: heads weighted by their mean gradient.

    ``map = mean_h(g_h A_h[r, patches])`` with ``g_h = mean over patches of ∂y/∂A_h[r, patches]``, (B, h, w); r is the
    row the head reads, of the last block or of a pooling attention. Where the head reads several rows, ``A_h`` is their
    weighted mean and the gradient that of a change made alike to all of them, their sum. Signed: the paper drops what
    is below zero, which often is all of the map.
    """
    _, rows, shares = reading(trace)
    layer = read_attention(trace)  # a full backward would bring the gradients of layers that do not matter here
    assert layer.grad_out is not None and layer.v is not None
    patches = math.prod(trace.anatomy.grid)
    # The mean over patches of (Σ ∂y/∂out) vᵀ, (B, H): no gradient of the size of attention is needed.
    slopes = (layer.grad_out[:, :, rows].float().sum(2) * layer.v[:, :, -patches:].float().mean(2)).sum(-1)

    def weighted(layer: Layer, images: slice, part: slice) -> Tensor:
        share = shares[part.start - rows.start : part.stop - rows.start, None]
        return layer.attention(images, part) * slopes[images, :, None, None] * share

    return trace.patches(on_tokens(trace, column_sums(layer, weighted, rows))) / layer.shape[1]
