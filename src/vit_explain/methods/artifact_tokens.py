"""Norms of the patch tokens, and which of them are artifacts."""

from __future__ import annotations

from typing import Annotated

from ..artifacts import DEVIATIONS, median, outliers
from ..options import Range, nth
from ..registry import method
from ..types import Attribution, Trace


@method(
    paper="Darcet et al., Vision Transformers Need Registers, ICLR 2024",
    family="looking inside",
    means="How long each patch's token is: those that stand far out are artifacts, where the model keeps notes about "
    "the whole picture.",
    does_not_mean="A long token is no important patch. It shows where other maps may light up although nothing is to "
    "be seen there, not what the answer rests on.",
    needs={"tokens"},
    class_specific=False,
)
def artifact_tokens(
    trace: Trace, *, layer: int = -1, deviations: Annotated[float, Range(0.0)] = DEVIATIONS
) -> Attribution:
    """Norm of each patch token, to find the few where the model keeps notes instead of looking.

    ``map_i = ‖x_i‖₂`` of the tokens as they leave the block, before any norm, (B, h, w). Artifact tokens have
    ``norm > median + max(deviations · 1.4826 MAD, median)`` among the patches of their image (median absolute
    deviation): far outside the others' spread and more than twice their median. The paper reads a threshold off each
    model's histogram instead. ``artifact_tokens`` counts them, ``artifact_share`` is their share of the patches, and
    ``median_norm`` and ``largest_norm`` tell how far out they are.

    ``layer``: block number from 0, or from the end when negative. ``deviations``: as in the formula.
    """
    number = nth(layer, len(trace.anatomy.blocks), "artifact_tokens", "layer")
    norms = trace.tokens[number + 1].detach()[:, trace.anatomy.prefix :].float().norm(dim=2)
    found = outliers(norms, deviations).float()
    return Attribution(
        norms.unflatten(1, trace.anatomy.grid),
        {
            "artifact_tokens": found.sum(1),
            "artifact_share": found.mean(1),
            "median_norm": median(norms),
            "largest_norm": norms.amax(1),
        },
    )
