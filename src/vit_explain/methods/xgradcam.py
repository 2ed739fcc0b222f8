"""XGrad-CAM."""

from __future__ import annotations

import torch

from ..cams import patch_features, patch_gradients, rectified
from ..registry import method
from ..types import Attribution, Trace


@method(
    paper="Fu et al., Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs, BMVC 2020",
    family="class activation maps",
    means="As gradcam, with gradients averaged by how active each patch is, so that the map, before it is cut off at "
    "zero, adds up to features times gradient.",
    does_not_mean="Tokens have a sign, so a channel's sum may be close to zero and its weight huge: few channels then "
    "rule the map. It reads patch tokens before the last attention, not what a class token had gathered before.",
    needs={"features", "gradient"},
    backwards=1,
    class_specific=True,
    hardly_class_specific="divides by the sum of a feature map, which for tokens of both signs may be next to nothing",
)
def xgradcam(trace: Trace) -> Attribution:
    """Grad-CAM with gradients averaged by how active each patch is, so that the map adds up to features × gradient.

    ``w_k = Σ_i Z_ik G_ik / Σ_i Z_ik`` (0 where the sum is 0), ``map_i = relu(Σ_k w_k Z_ik)``, (B, h, w); Z and G as
    in ``gradcam``. Before the relu the map adds up to ``Σ_ik Z_ik G_ik``, the paper's conservation.

    The paper assumes feature maps that are never negative. Tokens have a sign, so a channel's sum can be close to 0 and
    its weight large: then few channels rule the map.
    """
    features, gradients = patch_features(trace), patch_gradients(trace)
    active = features.sum(1, keepdim=True)
    weights = (features * gradients).sum(1, keepdim=True) / active
    return rectified(trace, (torch.where(active == 0, 0.0, weights) * features).sum(2))
