"""CP-LRP: relevance through constant attention and constant standard deviations.

The authors of LXT, a reference implementation of relevance propagation, state that LRP is a patented technology that
can only be used free of charge for personal and scientific purposes.
"""

from __future__ import annotations

from torch import Tensor

from ..registry import method
from ..rules import Epsilon, Gamma, Level, Rules, needed_at, relevance
from ..types import Trace


@method(
    paper="Ali et al., XAI for Transformers: Better Explanations through Conservative Propagation, ICML 2022",
    family="relevance propagation",
    means="Each patch's share of the score, for and against, with attention and the divisors of norms taken as "
    "constants.",
    does_not_mean="It does not say why the model attended as it did. Shares add up to the score only over all tokens, "
    "prefix tokens and positions included, and only without biases and with activations that are linear in pieces, "
    "which GELU is not.",
    needs={"gradient"},
    needs_also=lambda *, level, **_: needed_at(level),
    backwards=1,
    class_specific=True,
    signed=True,
    within=lambda *, linear_gamma, conv_gamma, epsilon, **_: Rules(
        attention="detach",
        normalisation="detach_std",
        linear_gamma=linear_gamma,
        conv_gamma=conv_gamma,
        epsilon=epsilon,
    ),
)
def cp_lrp(
    trace: Trace,
    *,
    level: Level = "patches",
    linear_gamma: Gamma = 0.0,
    conv_gamma: Gamma = 0.0,
    epsilon: Epsilon = 0.0,
) -> Tensor:
    """Input times gradient where attention and standard deviations are constants: what spoke for and against the class.

    ``map = Σ_channels x ⊙ ∂y/∂x``, signed. In the backward the attention A and the standard deviations of the norms
    are constants; activations keep their gradient, as in the paper. Without biases and with activations that are
    linear in pieces (ReLU) relevance is conserved: over *all* tokens that enter the first block, prefix tokens and
    position embeddings included, it sums to y. GELU breaks that (``libra_grad`` repairs it), and biases absorb some.

    ``level``: "patches", of the tokens that enter the first block, (B, h, w), prefix tokens dropped; "pixels", of the
    model's input, (B, H, W). ``linear_gamma``, ``conv_gamma``: contributions of a linear layer (a convolution, which is
    on the way to the pixels alone) that have its output's sign count 1 + γ times; 0 is the paper's own rule, larger
    values give less noisy maps and must be tuned for every model. ``epsilon`` is added to the size of outputs, so small
    ones lose relevance. Any γ doubles the cost of the layers that it concerns.
    """
    return relevance(trace, level, conv_gamma=conv_gamma)
