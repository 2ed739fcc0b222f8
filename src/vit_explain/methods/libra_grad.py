"""LibraGrad: gradients balanced until what they say of the input and the biases adds up."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..attention_paths import column_sums, plain
from ..errors import OptionError
from ..registry import method
from ..rules import Level, Rules, needed_at, relevance
from ..types import Trace

Over = Literal["input_x_gradient", "attcat", "fullgrad_plus"]
ALSO = {"input_x_gradient": set(), "attcat": {"attention", "tokens"}, "fullgrad_plus": {"biases", "tokens"}}


@method(
    paper="Mehri, Soleymani Baghshah and Pilehvar, LibraGrad: Balancing Gradient Flow for Universally Better Vision "
    "Transformer Attributions, CVPR 2025",
    family="relevance propagation",
    means="Each patch's share of the score, for and against, by gradients balanced such that tokens and biases "
    "together add up to it.",
    does_not_mean="It does not say why the model attended as it did: attention is taken as a constant. The map alone "
    "does not add up to the score, since the shares of prefix tokens, and by default those of biases, are not in it.",
    needs={"gradient"},
    needs_also=lambda *, over, level: ALSO[over] | needed_at(level),
    backwards=1,
    class_specific=True,
    signed=True,
    within=lambda **_: Rules(attention="detach", normalisation="detach_std", activation="identity", gate="half"),
)
def libra_grad(trace: Trace, *, over: Over = "input_x_gradient", level: Level = "patches") -> Tensor:
    """A gradient method whose backward is balanced, so that nothing is counted twice or lost: what spoke for the class.

    In the backward attention, the standard deviations of norms and the gates of activations (Φ(x) of GELU) are
    constants, and both factors of a gated product get half. Then y is the sum of ``x ⊙ ∂y/∂x`` over all tokens, prefix
    tokens included, and of ``b ⊙ ∂y/∂out`` over all biases, at any depth. Signed.

    ``over``: what the balanced gradients are used in, with Z_l the tokens that enter block l. "input_x_gradient",
    ``Z_0 ⊙ ∂y/∂Z_0``, which is CP-LRP with the identity rule on activations. "attcat" (Qiang et al., NeurIPS 2022),
    ``Σ_l a_l Z_l ⊙ ∂y/∂Z_l`` with a_l what a token receives of block l's attention, on average over heads and queries.
    "fullgrad_plus", ``Σ_l Z_l ⊙ ∂y/∂Z_l`` plus the biases' share at the token, once (Srinivas and Fleuret, NeurIPS
    2019, as LibraGrad's authors extend it; read from their code). All are summed over channels.

    ``level``: "patches", (B, h, w), prefix tokens dropped; "pixels", of the model's input, (B, H, W), for
    "input_x_gradient" only.
    """
    if over == "input_x_gradient":
        return relevance(trace, level)
    if level == "pixels":
        raise OptionError(f"libra_grad: over={over!r} speaks of tokens; at the pixels there is 'input_x_gradient'")
    terms = [trace.impact(block) for block in range(len(trace.tokens) - 1)]  # of the tokens that enter each block
    if over == "attcat":
        # What a token receives of a layer's attention, on average over heads and queries.
        received = (column_sums(layer, plain) / (layer.shape[1] * layer.shape[2]) for layer in trace.layers)
        weighted = (share * term for share, term in zip(received, terms, strict=True))
        return trace.patches(torch.stack(list(weighted)).sum(0))
    assert trace.biases is not None
    return trace.patches(torch.stack([*terms, trace.biases.float()]).sum(0))
