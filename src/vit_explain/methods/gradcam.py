"""Grad-CAM."""

from __future__ import annotations

from ..cams import patch_features, patch_gradients, rectified
from ..registry import method
from ..types import Attribution, Trace


@method(
    paper="Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, "
    "ICCV 2017",
    family="class activation maps",
    means="Where the features that speak for the class are, among the patch tokens as the last attention gets them.",
    does_not_mean="In a model with a class token it sees only what the last attention still fetches from the patches, "
    "not what that token had gathered before. Weights are averaged over patches, so a patch may light up that the "
    "score does not depend on; evidence against is cut off.",
    needs={"features", "gradient"},
    backwards=1,
    class_specific=True,
)
def gradcam(trace: Trace) -> Attribution:
    """Feature maps of the last block, each weighted by its mean gradient: where features of the class are.

    ``w_k = mean_i G_ik``, ``map_i = relu(Σ_k w_k Z_ik)``, (B, h, w), with Z the tokens that enter the last attention,
    after their norm, and G = ∂y/∂Z. The paper reads the last convolution; the tokens after the last attention would be
    no counterpart, as a head that reads the class token gives patches no gradient there. i runs over patch tokens only.
    """
    weights = patch_gradients(trace).mean(1, keepdim=True)
    return rectified(trace, (weights * patch_features(trace)).sum(2))
