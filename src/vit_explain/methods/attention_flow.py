"""Attention flow."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ..attention_paths import plain
from ..flow import OTHER_CUT, SINK_CUT, SOURCE_CUT, Flows, maximum_flows
from ..flow_cuts import Floats
from ..layer import ALL, Layer
from ..options import Range
from ..propagate import DiscardRatio, HeadFusion, discard_lowest, fused_blocks, pooled_row, protected_tokens
from ..registry import method
from ..types import Attribution, Trace

DEGENERATE = 0.01  # the share of patches with a cut of their own below which a map says nothing of the token read


@method(
    paper="Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020",
    family="attention",
    means="The most that could pass from each patch to what the head reads, were attention in the last blocks the "
    "width of pipes that everything must fit through.",
    does_not_mean="Where the answer came from: it knows no class, and a flow that could be is not one that was. Over "
    "the full depth it is the clipped column sums of the first block, the same whatever token the head reads.",
    beyond_passes="a maximum flow for each patch",
    needs={"attention"},
    class_specific=False,
    read_rows_suffice=lambda *, discard_ratio, **_: discard_ratio == 0,
)
def attention_flow(
    trace: Trace,
    *,
    last_blocks: Annotated[int, Range(1)] | None = 3,
    head_fusion: HeadFusion = "mean",
    discard_ratio: DiscardRatio = 0.0,
) -> Attribution:
    """The most that could flow from each patch to what the head reads, were attention the width of pipes.

    Token i of block l and token j of the block below are joined by a pipe of capacity ``Ã_l[i, j]``, with
    ``Ã = rownorm(discard(fuse_h A) + I)`` as in rollout. The map is the maximum flow between each patch, alone, and the
    head: (B, h, w), the raw values, between 0 and 1; the paper divides them by their sum. The head draws from each
    token no more than the weight it reads it with. That is no limit where it reads a single token, as in the paper; for
    heads that read a mean of tokens, or through a pooling attention, it is this package's reading of the paper.

    ``last_blocks``: how many blocks, counted from the last, the pipes go through; all of them where there are fewer, or
    with ``None``, as in the paper. In ViTs the full depth is degenerate: early blocks could carry far more than one
    unit, so the narrow places are the ends alone, and the flow is ``min(1, column sum of the first block's Ã)``, the
    same for whichever token is read, and no better than a random map in a deletion test. A warning says so where it is
    the case, and facts say which share of the patches is limited by all that the head draws (``source_cut``), by all
    that the patch is given (``sink_cut``), or by a cut in between (``other_cut``), which alone depends on the token.

    The flows are exact: each is the cost of a cut, in float64, and comes with a flow that reaches it up to
    ``largest_gap``, relative to it. Time grows with the square of the number of tokens, and is spent on the processor.
    """
    layers = trace.layers if last_blocks is None else trace.layers[-last_blocks:]
    rows = pooled_row(trace, plain, head_fusion)
    flows = []
    for image, row in enumerate(rows):
        capacities = _capacities(trace, layers, image, row, head_fusion, discard_ratio)
        flows.append(maximum_flows(row.double().cpu().numpy(), capacities))
    values = torch.from_numpy(np.stack([flow.values for flow in flows]))
    prefix, first = trace.anatomy.prefix, len(trace.layers) - len(layers)
    facts = {
        name: torch.tensor([float((flow.cuts[prefix:] == kind).mean()) for flow in flows])
        for name, kind in (("source_cut", SOURCE_CUT), ("sink_cut", SINK_CUT), ("other_cut", OTHER_CUT))
    }
    facts["largest_gap"] = torch.tensor([float(flow.gaps[prefix:].max()) for flow in flows])
    return Attribution(trace.patches(values), facts, [_warnings(flow, prefix, first) for flow in flows])


def _warnings(flow: Flows, prefix: int, first: int) -> list[str]:
    if (flow.cuts[prefix:] == OTHER_CUT).mean() >= DEGENERATE:
        return []
    return [
        f"the map is the column sum of block {first}, clipped at all that the head draws, and does not depend on which "
        "token is read; fewer last_blocks may tell more"
    ]


def _capacities(
    trace: Trace, layers: list[Layer], image: int, row: Tensor, fusion: HeadFusion, discard_ratio: float
) -> Floats:
    """Ã of these layers for one image, from the last down: (layers, N, N); rows of no use are left zero."""
    tokens, protected = trace.length, protected_tokens(trace)
    capacities = np.zeros((len(layers), tokens, tokens))
    for matrix, layer in zip(capacities, reversed(layers), strict=True):
        rows = trace.read_tokens if layer is layers[-1] and discard_ratio == 0 else ALL
        alone = slice(image, image + 1)
        for _, part, fused in fused_blocks(layer, rows, plain, fusion, whole=discard_ratio > 0, images=alone):
            some = discard_lowest(fused, discard_ratio, protected)[0].double().cpu().numpy()
            some[np.arange(len(some)), np.arange(part.start, part.stop)] += 1
            matrix[part] = some / some.sum(1, keepdims=True)
    return capacities
