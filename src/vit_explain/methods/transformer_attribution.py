"""Transformer attribution."""

from __future__ import annotations

from torch import Tensor

from ..attention_paths import accumulate, fused_rows, on_tokens, reading, start_of
from ..layer import Layer
from ..registry import method
from ..relevance_rules import attention_relevance
from ..relprop import RelevanceMode, imprecise, relevances
from ..types import Attribution, Trace


@method(
    paper="Chefer, Gur and Wolf, Transformer Interpretability Beyond Attention Visualization, CVPR 2021",
    family="relevance propagation",
    means="Which patches the head drew the class from: the relevance of attention, weighted by its gradient, through "
    "all layers.",
    does_not_mean="Only positive contributions are followed and kept, so it shows evidence for the class and none "
    "against; the numbers do not add up to the score. Two classes cannot be contrasted.",
    needs={"attention", "gradient", "probe"},
    forwards=2,
    backwards=2,
    beyond_passes="relevance goes through every operation by rules of several products each",
    class_specific=True,
)
def transformer_attribution(trace: Trace, *, start_layer: int = 0) -> Attribution:
    """Relevance of attention weighted by its gradient, through all layers: which looks spoke for the class.

    ``Ā = mean_h (∂y/∂A ⊙ R_A)⁺`` with R_A the relevance of A (α=1, β=0; a class's logit starts with
    relevance 1); ``map = r (I + Ā_L) … (I + Ā_s)`` at the patches, (B, h, w), where r is the row the head reads and
    rows are not normalised. The row of the identity itself is left out: it is zero at the patches of a model with a
    class token, and the same for every patch under mean pooling.

    ``start_layer``: the first block s that counts. The paper's own scripts leave out block 0 for segmentation and
    perturbation (1), its notebook does not (0).

    Relevance of a residual sum is parted for each image on its own, where the paper's code sums over the batch. What
    the paper has no rules for: scaling by a parameter (LayerScale), normalised queries and keys, position biases in the
    scores and distilled heads' mean follow the rules for scales, norms, biases and sums; rotary positions those for a
    sum of two scaled halves; a gate gets half; a mean over patches is shared out by each patch's part of it; a pooling
    attention is one more attention, whose Ā is r. Contrasts are refused, their relevance sums to zero.

    Terms that nearly cancel magnify the model's rounding: in half precision there is a warning.
    """
    first = start_of(trace, "transformer_attribution", start_layer, 0)
    seen = relevances(trace, RelevanceMode(first))
    partners = [(trace.pool, seen.pool), *zip(trace.layers, seen.layers, strict=True)]
    relevance_of = {id(layer): relevance for layer, relevance in partners if relevance is not None}

    def weights(layer: Layer, images: slice, rows: slice) -> Tensor:
        relevance = attention_relevance(relevance_of[id(layer)], images, rows)
        return relevance.mul_(layer.attention_gradient(images, rows)).clamp_(min=0)

    layers = trace.layers[first:]
    if trace.pool is None:
        row = trace.read_row().unsqueeze(1)
        return Attribution(
            trace.patches(accumulate(layers, row, weights, trace.read_tokens).squeeze(1)), warnings=imprecise(seen)
        )
    pool, queries, _ = reading(trace)
    row = on_tokens(trace, fused_rows(pool, queries, weights)).mean(1, keepdim=True)
    return Attribution(
        trace.patches((row + accumulate(layers, row, weights, trace.read_tokens)).squeeze(1)), warnings=imprecise(seen)
    )
