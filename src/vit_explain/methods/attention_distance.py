"""Attention distance."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..heads import Head, of_patches
from ..registry import method
from ..types import Attribution, Trace


@method(
    paper="Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; Raghu et al., NeurIPS 2021",
    family="looking inside",
    means="How far each patch looks in one layer.",
    does_not_mean="It describes attention, not the answer: a far look is not more important than a near one. It does "
    "not depend on a class.",
    needs={"attention"},
    class_specific=False,
)
def attention_distance(
    trace: Trace, *, layer: int = -1, head: Head = "mean", unit: Literal["patches", "pixels"] = "patches"
) -> Attribution:
    """How far each patch looks: the mean distance to the other patches, weighted by its attention.

    ``d_i = Σ_j A_ij ‖p_i − p_j‖ / Σ_j A_ij`` over the patches j, (B, h, w), with p the centres of the patches. Prefix
    tokens have no place, so they are left out and the rest is divided by its sum. ``mean_distance`` is the mean over
    the patches, the number that the papers plot for each head.

    ``layer``: block number from 0, or from the end when negative. ``head``: a number, or how to fuse the heads'
    distances. ``unit``: of the distance; patches need not be square in pixels.
    """
    prefix, (rows, columns), (height, width) = trace.anatomy.prefix, trace.anatomy.grid, trace.anatomy.covers
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(trace.logits.device).float()
    if unit == "pixels":
        places = places * places.new_tensor([height / rows, width / columns])

    def distance(attention: Tensor, queries: slice) -> Tensor:
        here = places[queries.start - prefix : queries.stop - prefix]
        apart = torch.cdist(here, places, compute_mode="donot_use_mm_for_euclid_dist")
        seen = attention[..., prefix:]
        return (seen * apart).sum(-1) / seen.sum(-1).clamp_min(torch.finfo(seen.dtype).tiny)

    found = of_patches(trace, layer, head, distance, "attention_distance")
    return Attribution(found, {"mean_distance": found.mean((1, 2))})
