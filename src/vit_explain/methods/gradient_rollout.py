"""Gradient attention rollout."""

from __future__ import annotations

from torch import Tensor

from ..attention_paths import product
from ..layer import Layer
from ..propagate import DiscardRatio, HeadFusion, legacy_roll_out, pooled_row, protected_tokens, roll_out
from ..registry import method
from ..types import Trace


@method(
    paper="Gildenblat, Exploring Explainability for Vision Transformers, 2020 (blog and code; no paper)",
    family="attention × gradient",
    means="To first order, which looks from token to token raise the score of the class, gathered over all layers.",
    does_not_mean="Gradients are local: they tell what a small change of attention would do, not what the score is "
    "made of. It finds evidence for the class that was asked for, also where the picture shows something else.",
    any_layout=True,
    needs={"attention", "gradient"},
    backwards=1,
    class_specific=True,
)
def gradient_rollout(
    trace: Trace, *, head_fusion: HeadFusion = "mean", discard_ratio: DiscardRatio = 0.0, legacy: bool = False
) -> Tensor:
    """Rollout of attention weighted by its gradient: which looks spoke for the class.

    ``Ã = rownorm(discard(max(fuse_h(A ⊙ ∂y/∂A), 0)) + I)``, ``map = r Ã_L … Ã_1`` at the patches, (B, h, w). Entries
    of ``A ⊙ ∂y/∂A`` are small beside the identity, so the map is close to the sum over layers of each layer's own.

    ``legacy``: the original script's arithmetic to the letter: the gradient is that of the *scores before softmax*,
    ``A ⊙ (∂y/∂A − Σ A ⊙ ∂y/∂A)``, taken from layer L-1-l for layer l; heads are fused by mean whatever
    ``head_fusion`` says; columns are divided by the row sums.
    """
    if legacy:
        partner = dict(zip(map(id, trace.layers), reversed(trace.layers), strict=True))

        def crossed(layer: Layer, images: slice, rows: slice) -> Tensor:
            other = partner[id(layer)]
            weights = other.attention(images, rows)
            gradient = other.attention_gradient(images, rows)
            scores = weights * (gradient - (weights * gradient).sum(-1, keepdim=True))
            return layer.attention(images, rows) * scores

        return trace.patches(legacy_roll_out(trace, crossed, "mean", discard_ratio, keep_first=False))
    row = pooled_row(trace, product, head_fusion)
    protected = protected_tokens(trace)
    rolled = roll_out(trace.layers, row, product, head_fusion, discard_ratio, protected, trace.read_tokens)
    return trace.patches(rolled)
