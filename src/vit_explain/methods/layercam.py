"""LayerCAM."""

from __future__ import annotations

from ..cams import patch_features, patch_gradients, rectified
from ..registry import method
from ..types import Attribution, Trace


@method(
    paper="Jiang et al., LayerCAM: Exploring Hierarchical Class Activation Maps for Localization, IEEE TIP 2021",
    needs={"features", "gradient"},
    backwards=1,
    class_specific=True,
)
def layercam(trace: Trace) -> Attribution:
    """Features times their positive gradient, patch by patch: features that more of would help the class.

    ``map_i = relu(Σ_k relu(G_ik) Z_ik)``, (B, h, w); Z and G as in ``gradcam``.
    """
    return rectified(trace, (patch_gradients(trace).clamp(min=0) * patch_features(trace)).sum(2))
