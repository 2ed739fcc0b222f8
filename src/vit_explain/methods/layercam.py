"""LayerCAM."""

from __future__ import annotations

from ..cams import patch_features, patch_gradients, rectified
from ..registry import method
from ..types import Attribution, Trace


@method(
    paper="Jiang et al., LayerCAM: Exploring Hierarchical Class Activation Maps for Localization, IEEE TIP 2021",
    family="class activation maps",
    means="Where features are present that the class would gain from more of, patch by patch.",
    does_not_mean="Features that lower the score are left out, so it shows no evidence against. It reads patch tokens "
    "before the last attention, not what a class token had gathered before.",
    needs={"features", "gradient"},
    backwards=1,
    class_specific=True,
)
def layercam(trace: Trace) -> Attribution:
    """Features times their positive gradient, patch by patch: features that more of would help the class.

    ``map_i = relu(Σ_k relu(G_ik) Z_ik)``, (B, h, w); Z and G as in ``gradcam``.
    """
    return rectified(trace, (patch_gradients(trace).clamp(min=0) * patch_features(trace)).sum(2))
