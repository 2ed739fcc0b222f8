"""Partial LRP."""

from __future__ import annotations

from torch import Tensor

from ..attention_paths import fused_rows, on_tokens, reading
from ..layer import Layer
from ..registry import method
from ..relevance_rules import attention_relevance
from ..relprop import RelevanceMode, imprecise, relevances
from ..types import Attribution, Trace


@method(
    paper="Voita, Talbot, Moiseev, Sennrich and Titov, Analyzing Multi-Head Self-Attention, ACL 2019",
    family="relevance propagation",
    means="From which patches the last attention fetched what then counted for the class.",
    does_not_mean="It shows one layer, whose tokens have already gathered from elsewhere. The relevance of all "
    "positive contributions depends little on the class, so the maps of two classes are often alike.",
    needs={"probe", "blocks"},
    forwards=2,
    backwards=1,
    class_specific=True,
    hardly_class_specific="relevance of positive contributions depends little on the class (Gu, Yang and Tresp, ACCV "
    "2018)",
)
def partial_lrp(trace: Trace, *, legacy: bool = False) -> Attribution:
    """Positive relevance of the last layer's attention: which patches the deciding row drew the class from.

    ``map = r mean_h R_A⁺`` at the patches, (B, h, w), where R_A is the relevance (α=1, β=0) of the last layer's A
    and r the row that the head reads; a pooling attention is the last layer of a model that has one.
    The paper judges heads by their relevance; as a map it is a baseline of Chefer, Gur and Wolf (CVPR 2021). As there,
    sums are shared out without the renormalisation of ``transformer_attribution``.

    Terms that nearly cancel magnify the model's rounding: in half precision there is a warning.

    ``legacy``: that baseline's code to the letter: in linear layers, products of two positive factors and products of
    two negative ones each share out the whole relevance, so that it grows, and more so in the MLP than beside it.
    """
    calls = len(trace.anatomy.blocks) + trace.anatomy.readout.attention
    seen = relevances(trace, RelevanceMode(calls - 1, joint=not legacy, renormalised=False))
    layer, rows, weights = reading(seen)
    return Attribution(
        trace.patches(on_tokens(trace, weights @ fused_rows(layer, rows, _positive))), warnings=imprecise(seen)
    )


def _positive(layer: Layer, images: slice, rows: slice) -> Tensor:
    return attention_relevance(layer, images, rows).clamp_(min=0)
