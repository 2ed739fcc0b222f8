"""LeGrad."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor

from ..attention_paths import column_sums, gradient_of, on_tokens, positive_gradient, through_pool
from ..capture import with_gradient
from ..errors import OptionError
from ..layer import Layer
from ..options import Range
from ..registry import method
from ..types import Trace


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
    found = torch.zeros(len(trace.pixels), trace.length, dtype=torch.float32, device=trace.logits.device)
    for layer in _through_pool(trace, chosen) if trace.pool is not None else _through_head(trace, chosen):
        _, heads, queries, _ = layer.shape
        found += on_tokens(trace, column_sums(layer, positive_gradient)) / (heads * queries)
    return trace.patches(found)


def _through_head(trace: Trace, chosen: Sequence[int]) -> Iterator[Layer]:
    """The blocks' attention, each with the gradient of its own score."""
    means = torch.stack([trace.tokens[number + 1].detach().mean(1) for number in chosen], 1)  # (B, n, D)
    with torch.enable_grad():
        rows = means.flatten(0, 1).requires_grad_()
        # Whichever tokens the head reads, each of them is the mean, so that one patch stands for all.
        output = trace.inquiry.lens(rows.unsqueeze(1).expand(-1, trace.anatomy.prefix + 1, -1))
        values = trace.inquiry.value(output)
    upstream = gradient_of(values, rows).view_as(means) / trace.length
    for number, each in zip(chosen, upstream.unbind(1), strict=True):
        layer, tokens = trace.layers[number], trace.tokens[number + 1]
        yield with_gradient(layer, gradient_of(tokens, layer.out, each.unsqueeze(1).expand_as(tokens)))


def _through_pool(trace: Trace, chosen: Sequence[int]) -> Iterator[Layer]:
    """The pooling attention that reads each block's tokens, with the gradient of the score that it makes of them."""
    for number in chosen:
        with torch.enable_grad():
            tokens = trace.tokens[number + 1].detach()
            layer, output = through_pool(trace.inquiry, tokens, trace.anatomy.readout)
            values = trace.inquiry.value(output)
        yield with_gradient(layer, gradient_of(values, layer.out))
