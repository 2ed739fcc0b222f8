"""AttnLRP: relevance through attention too.

The authors of LXT, the reference implementation of AttnLRP, state that LRP is a patented technology that can only be
used free of charge for personal and scientific purposes.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..registry import method
from ..rules import Epsilon, Gamma, Level, Rules, needed_at, relevance
from ..types import Trace


@method(
    paper="Achtibat et al., AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers, ICML 2024",
    family="relevance propagation",
    means="Each patch's share of the score, for and against, where attention's queries and keys get a share as well as "
    "its values.",
    does_not_mean="Shares do not add up to the score: the softmax and the biases keep a part. The map depends on γ, "
    "whose best value differs from model to model.",
    needs={"gradient"},
    needs_also=lambda *, level, **_: needed_at(level),
    backwards=1,
    class_specific=True,
    signed=True,
    within=lambda *, attention, linear_gamma, conv_gamma, epsilon, **_: Rules(
        attention=attention,
        normalisation="detach_std",
        activation="identity",
        gate="half",
        linear_gamma=linear_gamma,
        conv_gamma=conv_gamma,
        epsilon=epsilon,
    ),
)
def attn_lrp(
    trace: Trace,
    *,
    level: Level = "patches",
    attention: Literal["uniform", "detach"] = "uniform",
    linear_gamma: Gamma = 0.0,
    conv_gamma: Gamma = 0.0,
    epsilon: Epsilon = 0.0,
) -> Tensor:
    """Relevance propagated through values, and through queries and keys: what spoke for and against the class.

    ``map = Σ_channels x ⊙ ∂y/∂x``, signed, where in the backward both factors of a matrix product get half of the
    relevance, the softmax keeps its Jacobian, ``f(x) / x`` of activations and the standard deviations of norms are
    constants, and linear layers follow the γ-rule. A sigmoid that gates is a constant, where the paper would give it
    half. The softmax is not homogeneous, so y is *not* conserved: the paper lets a bias absorb the rest.

    ``level``: "patches", of the tokens that enter the first block, (B, h, w), prefix tokens dropped; "pixels", of the
    model's input, (B, H, W). ``attention``: "detach" gives queries and keys nothing, as the authors' code does for
    vision transformers; without biases y is then conserved. ``linear_gamma``, ``conv_gamma``: contributions of a
    linear layer (a convolution, which is on the way to the pixels alone) that have its output's sign count 1 + γ times.
    The paper uses γ for vision transformers because maps are noisy without it, and searches it on a grid for every
    model. On the bundled model a γ of 0.01 localises objects in mosaics a little better than 0 and deletes as well, and
    0.25 does worse; as any γ doubles the cost of the layers that it concerns, the default is 0. ``epsilon`` is added to
    the size of outputs, so small ones lose relevance.

    With ``attention="detach"`` this is what lxt and zennit give for vision transformers, where zennit's γ reaches all
    linear layers; it does not reach the projections inside ``nn.MultiheadAttention``, which torchvision's models use.
    """
    return relevance(trace, level, conv_gamma=conv_gamma)
