"""AttnLRP's relevance at every depth. For the LRP patent note see ``attn_lrp``."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..attention_paths import start_of
from ..registry import method
from ..rules import Rules
from ..types import Trace


@method(
    paper="no paper: this package's own. The rules of Achtibat et al., AttnLRP, ICML 2024, with the sum over layers of "
    "Qiang et al., AttCAT, NeurIPS 2022",
    family="relevance propagation",
    means="What each patch's token says for and against the class, on average over its way through the layers.",
    does_not_mean="Shares do not add up to the score. A token of a deep layer holds more than its own patch, so what "
    "neighbours gave it counts at its place.",
    needs={"tokens", "gradient"},
    backwards=1,
    class_specific=True,
    signed=True,
    within=lambda *, attention, **_: Rules(
        attention=attention, normalisation="detach_std", activation="identity", gate="half"
    ),
)
def depth_lrp(
    trace: Trace,
    *,
    attention: Literal["uniform", "detach"] = "uniform",
    start_layer: int | None = None,
) -> Tensor:
    """Relevance by AttnLRP's rules, averaged over all depths: what spoke for and against the class on its way.

    ``map_i = 1/L Σ_l Σ_d Z^l[i, d] ∂y/∂Z^l[i, d]`` at the patches, (B, h, w), signed; Z^l is what enters block l of L,
    and the gradient flows as in ``attn_lrp``, whose map is the term l = 0 alone. Each depth's relevance, prefix tokens
    included, is what attn_lrp makes of the score there; one backward gives them all. The lowest depth alone is noisy,
    as every block below it has added its own linearisation; the mean keeps what depths agree on.

    ``attention``: as in ``attn_lrp``. ``start_layer``: the first block, from 0, whose tokens count; by
    default the first of all.

    Chosen among some fifty variants on one half of the held-out photos of the bundled model, and reported on the
    other: docs/leaderboard.md. That it leads elsewhere is not verified.
    """
    start = start_of(trace, "depth_lrp", start_layer, 0)
    depths = range(start, len(trace.tokens) - 1)  # what leaves the last block enters none
    return trace.patches(torch.stack([trace.impact(block) for block in depths]).mean(0))
