"""AttCAT."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention_paths import column_sums, plain
from ..registry import method
from ..types import Trace


@method(
    paper="Qiang et al., AttCAT: Explaining Transformers via Attentive Class Activation Tokens, NeurIPS 2022",
    family="attention × gradient",
    means="To first order, what each patch's token says for and against the class in every layer, weighted by how much "
    "it is attended to.",
    does_not_mean="The sum over layers adds up to nothing in particular, since every layer speaks of the same score "
    "again. A token of a deep layer holds more than its own patch.",
    needs={"attention", "tokens", "gradient"},
    backwards=1,
    class_specific=True,
    signed=True,
)
def attcat(trace: Trace, *, attentive: bool = True) -> Tensor:
    """Tokens times their gradient in every layer, weighted by how much each token is attended to there.

    ``map_i = Σ_l a^l_i Σ_d Z^l[i, d] ∂y/∂Z^l[i, d]`` at the patches, (B, h, w), signed; Z^l is what enters block l, and
    ``a^l_i`` the mean of ``A^l[h, j, i]`` over heads h and queries j. ``attentive``: false leaves a^l out, which is the
    paper's CAT. The authors' code is for language models; it too takes what enters the blocks.
    """
    found = torch.zeros(len(trace.pixels), trace.length, dtype=torch.float32, device=trace.logits.device)
    for number, layer in enumerate(trace.layers):
        impact = trace.impact(number)
        if attentive:
            _, heads, queries, _ = layer.shape
            impact = impact * column_sums(layer, plain) / (heads * queries)
        found += impact
    return trace.patches(found)
