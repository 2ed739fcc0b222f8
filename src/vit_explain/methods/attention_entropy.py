"""Attention entropy."""

from __future__ import annotations

import torch

from ..heads import Head, of_patches
from ..registry import method
from ..types import Attribution, Trace


@method(
    paper="Clark et al., What Does BERT Look At?, BlackboxNLP 2019",
    family="looking inside",
    means="How evenly each patch spreads its attention in one layer.",
    does_not_mean="It tells over how many tokens, not over which, and a sharp look need not matter to the answer. It "
    "does not depend on a class.",
    needs={"attention"},
    class_specific=False,
)
def attention_entropy(trace: Trace, *, layer: int = -1, head: Head = "mean") -> Attribution:
    """How evenly each patch spreads its attention: 0 for a single token, the logarithm of their number for all alike.

    ``H_i = −Σ_j A_ij ln A_ij`` over all tokens j, prefix tokens included, in nats, (B, h, w). ``mean_entropy`` is the
    mean over the patches. The paper looks at language models; the formula is the same.

    ``layer``: block number from 0, or from the end when negative. ``head``: a number, or how to fuse the heads'
    entropies.
    """
    found = of_patches(trace, layer, head, lambda rows, _: torch.special.entr(rows).sum(-1), "attention_entropy")
    return Attribution(found, {"mean_entropy": found.mean((1, 2))})
