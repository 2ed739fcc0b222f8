"""Grad-SAM."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention_paths import column_sums, on_tokens, positive_product
from ..registry import method
from ..types import Trace


@method(
    paper="Barkan et al., Grad-SAM: Explaining Transformers via Gradient Self-Attention Maps, CIKM 2021",
    family="attention × gradient",
    means="How much each patch is looked at, by all tokens in all layers, where more of that look would raise the "
    "score.",
    does_not_mean="Layers are averaged, not multiplied, so it does not follow what a token had gathered before it was "
    "looked at. Looks that would lower the score are dropped.",
    needs={"attention", "gradient"},
    backwards=1,
    class_specific=True,
    hardly_class_specific="sums over every query of every layer, most of which never reach what the head reads",
    read_rows_suffice=lambda **_: True,
)
def grad_sam(trace: Trace) -> Tensor:
    """Attention times its positive gradient, averaged over layers, heads and queries.

    ``map_j = 1/(L H N) Σ_l Σ_h Σ_i (A ⊙ max(∂y/∂A, 0))[l, h, i, j]`` at the patches, (B, h, w), over all N tokens as
    queries; a pooling attention is one more layer. The paper is about language models. No code of its authors was
    found, and its text could not be checked for which index it averages over; here, as in others' code for it, it is
    the queries, so that a value belongs to the patch looked at.
    """
    layers = trace.layers if trace.pool is None else [*trace.layers, trace.pool]
    maps = [on_tokens(trace, column_sums(layer, positive_product)) / layer.shape[1] for layer in layers]
    return trace.patches(torch.stack(maps).mean(0) / trace.length)
