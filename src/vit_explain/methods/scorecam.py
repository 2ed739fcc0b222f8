"""Score-CAM."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cams import patch_features, rectified
from ..options import Range
from ..registry import method
from ..types import Attribution, Trace


@method(
    paper="Wang et al., Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks, "
    "CVPR Workshops 2020",
    family="class activation maps",
    means="Where features are that keep the score high when only the places where they are strong are shown.",
    does_not_mean="Masked pictures are unlike those that the model was trained on, and only some channels are tried. "
    "The softmax over channels can give nearly all weight to one of them.",
    needs={"features", "probe"},
    forwards=65,
    class_specific=True,
)
def scorecam(
    trace: Trace,
    *,
    channels: Annotated[int, Range(1)] | Literal["all"] = 64,
    score: Literal["logit", "probability"] = "logit",
) -> Attribution:
    """Feature maps weighted by how much of the score is left where each of them lets the image through; no gradients.

    ``M_k``: channel k of the patch tokens that enter the last attention (Z, after their norm), upsampled bilinearly
    over the pixels that the grid covers and scaled to [0, 1]; ``w = softmax_k y(x ⊙ M_k)``,
    ``map_i = relu(Σ_k w_k Z_ik)``, (B, h, w). What is masked goes to zero in the model's own pixels, mean grey for
    most models. The paper subtracts the score of an empty image, which its softmax over k takes out again.

    ``channels``: only so many channels, those that vary most over the patches (as Tabayashi's Faster Score-CAM); the
    paper takes ``"all"``, one forward each. ``score``: y is the logit, as in the paper's algorithm; probabilities lie
    so close together that the softmax over k makes all weights nearly equal. pytorch-grad-cam upsamples with the
    corners of token grid and image aligned, which stretches its masks, so its maps differ; with this upsampling they
    are the same.
    """
    maps = patch_features(trace).transpose(1, 2)  # (B, D, patches)
    if channels != "all" and channels < maps.shape[1]:
        lively = maps.var(2, correction=0).topk(channels, 1).indices
        maps = maps.gather(1, lively[..., None].expand(-1, -1, maps.shape[2]))
    scores = []
    done, total = 0, maps.shape[1]
    for some in maps.split(max(1, trace.inquiry.rows() // len(maps)), 1):
        masked = trace.pixels.unsqueeze(1) * _masks(trace, some).unsqueeze(2).to(trace.pixels.dtype)
        values = trace.inquiry.probe(masked.flatten(0, 1), probability=score == "probability")
        scores.append(values.unflatten(0, (-1, some.shape[1])))
        done += some.shape[1]
        trace.inquiry.progress(done, total)
    weights = torch.cat(scores, 1).softmax(1)
    return rectified(trace, (weights.unsqueeze(2) * maps).sum(1))


def _masks(trace: Trace, maps: Tensor) -> Tensor:
    """(B, K, patches) as masks in [0, 1] over the input, (B, K, H, W); a flat map lets nothing through."""
    covers = trace.anatomy.covers
    masks = F.interpolate(maps.unflatten(2, trace.anatomy.grid), covers, mode="bilinear", align_corners=False)
    low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
    masks = (masks - low) / (high - low).clamp_min(torch.finfo(masks.dtype).tiny)
    height, width = trace.pixels.shape[2:]
    return F.pad(masks, (0, width - covers[1], 0, height - covers[0]))
