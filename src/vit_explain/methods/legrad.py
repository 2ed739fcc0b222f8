"""LeGrad."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..attention_paths import column_sums, differentiated, on_tokens, positive_gradient, through_pool
from ..errors import OptionError
from ..options import Range
from ..registry import method
from ..types import Layer, Trace


@method(
    paper="Bousselham et al., LeGrad: An Explainability Method for Vision Transformers via Feature Formation "
    "Sensitivity, ICCV 2025",
    family="attention × gradient",
    means="Where more attention would raise the score that the head gives each layer's tokens, summed over layers.",
    does_not_mean="It shows where more attention would help, not where the model looked: attention itself is not "
    "multiplied in. The head was trained on the last layer, so what it says of early ones need not mean much.",
    needs={"attention", "tokens", "graph"},
    backwards=1,
    class_specific=True,
)
def legrad(trace: Trace, *, last: Annotated[int, Range(1)] | None = None) -> Tensor:
    """How each layer's own score for the class would grow with attention: the positive gradient, summed over layers.

    ``s^l = head(norm(mean over all tokens of Z^l))`` with Z^l what leaves block l, also where the model reads its class
    token; ``map = Σ_l mean_h mean_i max(∂s^l/∂A^l, 0)[h, i, patches]``, (B, h, w). The gradient passes the head and
    block l only, so all of them together cost about one backward. Attention itself is not multiplied in. Where the head
    reads through a pooling attention, ``s^l = head(pool(Z^l))`` and the gradient is that of the pooling attention.

    ``last``: only so many last layers, by default all; the authors' package takes the last two by default. For the same
    layers, it and torchcam give this map up to scale: the one ends in 0 … 1, the other averages over layers. The
    authors feed Z^l to a pooling attention as it is; here it passes the model's final norm, as what leaves the last
    block does.
    """
    blocks = len(trace.layers)
    if last is not None and last > blocks:
        raise OptionError(f"legrad: the model has {blocks} blocks, not the last {last}")
    chosen = range(blocks)[-(last or 0) :]
    found = torch.zeros(len(trace.pixels), trace.length, device=trace.logits.device)
    for number in chosen:
        layer = _own_score(trace, number)
        _, heads, queries, _ = layer.shape
        found += on_tokens(trace, column_sums(layer, positive_gradient)) / (heads * queries)
    return trace.patches(found)


def _own_score(trace: Trace, number: int) -> Layer:
    """The attention whose gradient counts for this block, with that gradient."""
    tokens, inquiry = trace.tokens[number + 1], trace.inquiry
    with torch.enable_grad():
        if trace.pool is not None:
            layer, output = through_pool(inquiry, tokens.detach(), trace.anatomy.readout)
        else:
            # The head may read any token: each of them is the mean.
            layer, output = trace.layers[number], inquiry.lens(tokens.mean(1, keepdim=True).expand_as(tokens))
        return differentiated(layer, inquiry.value(output))
