"""Attention-guided CAM."""

from __future__ import annotations

from torch import Tensor

from ..attention_paths import column_sums, guided, on_tokens
from ..errors import ModelError
from ..registry import method
from ..types import Trace


@method(
    paper="Leem and Seo, Attention Guided CAM: Visual Explanations of Vision Transformer Guided by Self-Attention, "
    "AAAI 2024",
    family="attention × gradient",
    means="Where more attention would raise the score, in every layer, guided by how well query and key match.",
    does_not_mean="The sigmoid of a match is no attention: patches do not compete, so one that is hardly attended to "
    "may still count. Looks that would lower the score are dropped.",
    needs={"attention", "gradient"},
    backwards=1,
    class_specific=True,
    read_rows_suffice=lambda **_: True,
)
def ag_cam(trace: Trace) -> Tensor:
    """Positive attention gradients of every layer, guided by the scores before the softmax: where more would help.

    ``map = Σ_l Σ_h Σ_i max(∂y/∂A[l, h, i, patches], 0) ⊙ sigmoid(S[l, h, i, patches])``, (B, h, w), with
    ``S = q kᵀ · scale`` (and a relative position bias where the model adds one) and i the tokens that the head reads:
    the class token alone in the paper, in every layer. Mean pooling reads all patches. A pooling attention is one more
    layer, and its keys are the tokens read in the others. Needs the scores, so not for models that compute their
    softmax themselves.
    """
    if trace.layers[0].q is None:
        raise ModelError("ag_cam: this model computes its softmax itself, so its scores are not known; use gae instead")
    found = sum(column_sums(layer, guided, trace.read_tokens) for layer in trace.layers)
    if trace.pool is not None:
        found = found + on_tokens(trace, column_sums(trace.pool, guided))
    assert isinstance(found, Tensor)
    return trace.patches(found)
