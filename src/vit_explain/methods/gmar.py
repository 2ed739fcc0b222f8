"""Gradient-driven multi-head attention rollout."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..attention_paths import weighted_heads
from ..layer import Layer
from ..propagate import pooled_row, roll_out
from ..registry import method
from ..types import Trace


@method(
    paper="Jo, Jang and Park, GMAR: Gradient-Driven Multi-Head Attention Rollout for Vision Transformer "
    "Interpretability, 2025 (arXiv 2504.19414)",
    family="attention × gradient",
    means="Where information could have come from, as in rollout, its heads weighted by how large the class's gradient "
    "is there.",
    does_not_mean="The class only chooses among heads, and a gradient against it counts like one for it, so the maps "
    "of two classes differ little.",
    needs={"attention", "gradient"},
    backwards=1,
    class_specific=True,
    hardly_class_specific="the gradient only weighs heads, and attention itself is the same for all classes",
    read_rows_suffice=lambda **_: True,
)
def gmar(trace: Trace, *, norm: Literal["l1", "l2"] = "l2") -> Tensor:
    """Attention rollout with heads weighted by how large the class's gradient is there.

    ``Ã = ½ Σ_h w_h A_h + ½ I``, ``map = r Ã_L … Ã_1`` at the patches, (B, h, w), r the row the head reads, with
    ``w_h = ‖∂y/∂A_h‖ / Σ_h ‖∂y/∂A_h‖`` of each layer. The class chooses among heads only, so maps of two classes differ
    little. The weights are the paper's, read in a review that quotes its formulas; that its rollout adds the identity
    and normalises as Abnar and Zuidema's does could not be verified, nor which norm is the paper's default.

    ``norm``: the sum of absolute values, or the root of the sum of squares, which costs no N×N gradient.
    """
    layers = trace.layers if trace.pool is None else [*trace.layers, trace.pool]
    weights = weighted_heads(layers, _absolute if norm == "l1" else _euclidean)
    row = pooled_row(trace, weights, "mean")
    return trace.patches(roll_out(trace.layers, row, weights, "mean", 0.0, read=trace.read_tokens))


def _absolute(layer: Layer) -> Tensor:
    found = torch.zeros(layer.shape[:2], dtype=torch.float32, device=layer.device)
    for images, rows in layer.blocks():
        found[images] += layer.attention_gradient(images, rows).abs_().sum((2, 3))
    return found


def _euclidean(layer: Layer) -> Tensor:
    """``‖G Vᵀ‖² = Σ (GᵀG) ⊙ (VᵀV)``, with G the output's gradient: D×D numbers a head instead of N×N."""
    assert layer.grad_out is not None and layer.v is not None
    gradient, values = layer.grad_out.float(), layer.v.float()
    squared = ((gradient.mT @ gradient) * (values.mT @ values)).sum((2, 3))
    return squared.clamp_(min=0).sqrt_()
