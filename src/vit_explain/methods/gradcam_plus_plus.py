"""Grad-CAM++."""

from __future__ import annotations

from ..cams import patch_features, patch_gradients, rectified
from ..registry import method
from ..types import Attribution, Trace


@method(
    paper="Chattopadhay et al., Grad-CAM++: Generalized Gradient-Based Visual Explanations for Deep Convolutional "
    "Networks, WACV 2018",
    family="class activation maps",
    means="As gradcam, with positive gradients weighted such that several objects of a class can all show.",
    does_not_mean="The weights are derived for features that are never negative, which tokens are not. As all of its "
    "kind it reads patch tokens before the last attention, not what a class token had gathered before, and cuts off "
    "evidence against.",
    needs={"features", "gradient"},
    backwards=1,
    class_specific=True,
)
def gradcam_plus_plus(trace: Trace) -> Attribution:
    """Grad-CAM with every patch's positive gradient weighted, so that several objects of a class all show.

    ``α_ik = G_ik² / (2 G_ik² + S_k G_ik³) = 1 / (2 + S_k G_ik)`` with ``S_k = Σ_i Z_ik``,
    ``w_k = Σ_i α_ik relu(G_ik)``, ``map_i = relu(Σ_k w_k Z_ik)``, (B, h, w); Z and G as in ``gradcam``.

    The paper explains ``exp(y)``, which scales the whole map by ``exp(y)`` and is left out. It also assumes feature
    maps that are never negative; tokens have a sign, and where ``S_k G_ik < -1`` the denominator is held at 1, so that
    0 < α ≤ 1 as in the paper. pytorch-grad-cam adds 1e-6 to the first form of the denominator. Gradients at the tokens
    of a ViT are so small that this outweighs ``2 G²`` and turns α into about ``10⁶ G²``: its maps differ from these and
    from the paper's formula, and change with the scale of y.
    """
    features, gradients = patch_features(trace), patch_gradients(trace)
    alpha = 1 / (2 + features.sum(1, keepdim=True) * gradients).clamp(min=1)
    weights = (alpha * gradients.clamp(min=0)).sum(1, keepdim=True)
    return rectified(trace, (weights * features).sum(2))
