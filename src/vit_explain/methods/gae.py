"""Generic attention explainability."""

from __future__ import annotations

from torch import Tensor

from ..attention_paths import accumulate, fused_rows, on_tokens, positive_product, reading, start_of
from ..placed import descended
from ..registry import method
from ..types import Trace


@method(
    paper="Chefer, Gur and Wolf, Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder "
    "Transformers, ICCV 2021",
    family="attention × gradient",
    means="To first order, which patches the head drew the class from: positive attention times gradient, multiplied "
    "through all layers.",
    does_not_mean="Evidence against the class is dropped in every head before anything is added up, and the MLPs are "
    "left out. The numbers do not add up to the score.",
    any_layout=True,
    needs={"attention", "gradient"},
    backwards=1,
    class_specific=True,
    read_rows_suffice=lambda **_: True,
)
def gae(trace: Trace, *, start_layer: int | None = None) -> Tensor:
    """Positive attention times gradient multiplied through all layers: which patches spoke for the class.

    ``Ā = mean_h max(A ⊙ ∂y/∂A, 0)``, ``R ← R + Ā R`` from the first layer to the last: ``R = (I + Ā_L) … (I + Ā_1)``;
    the map is the row of R that the head reads, (B, h, w). No row is normalised, as in the paper's self-attention
    rules. The row of the identity itself is left out: it is zero at the patches of a model with a class token, and the
    same for every patch under mean pooling. A pooling attention is a last ``Ā`` with the learned queries as its rows.

    ``start_layer``: the block, from 0, at which the product begins; by default the first. The authors begin at the last
    one for CLIP.
    """
    start = start_of(trace, "gae", start_layer, 0)
    layers = trace.layers[start:]
    if trace.pool is None:
        gained = accumulate(layers, trace.read_row().unsqueeze(1), positive_product, trace.read_tokens).squeeze(1)
        return trace.patches(descended(trace.layers[:start], gained))
    pool, queries, _ = reading(trace)
    row = on_tokens(trace, fused_rows(pool, queries, positive_product)).mean(1, keepdim=True)
    return trace.patches((row + accumulate(layers, row, positive_product, trace.read_tokens)).squeeze(1))
