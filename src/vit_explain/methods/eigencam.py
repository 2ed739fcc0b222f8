"""Eigen-CAM."""

from __future__ import annotations

from torch import Tensor

from ..cams import patch_features
from ..principal import leading_component
from ..registry import method
from ..types import Trace


@method(
    paper="Muhammad and Yeasin, Eigen-CAM: Class Activation Map using Principal Components, IJCNN 2020",
    family="class activation maps",
    means="What stands out among the patch tokens that the last attention gets: their first principal component.",
    does_not_mean="It knows neither class nor score: what varies most need not be what the answer rests on. The sign "
    "of a component is a convention.",
    needs={"features"},
    class_specific=False,
)
def eigencam(trace: Trace) -> Tensor:
    """First principal component of the last block's patch tokens: what stands out among them, whatever the class.

    ``Z − mean_i Z = U Σ Vᵀ``, ``map = relu(± Σ_1 U_1)``, (B, h, w), with Z the patch tokens that enter the last
    attention, after their norm. A component has no sign of its own: the patch with the largest absolute value is
    positive (Chung and Ying, Seg-Eigen-CAM, 2025). The paper does not centre the tokens; pytorch-grad-cam does, as the
    first component is otherwise little more than their mean, and shows the positive part with the sign left to chance.
    """
    features = patch_features(trace)
    component, _ = leading_component(features - features.mean(1, keepdim=True))
    furthest = component.gather(1, component.abs().argmax(1, keepdim=True))
    return (component * furthest.sign()).clamp(min=0).unflatten(1, trace.anatomy.grid)
