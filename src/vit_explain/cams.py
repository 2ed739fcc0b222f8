"""What class activation maps share: the last attention's patch tokens as feature maps, and the rectified map."""

from __future__ import annotations

from torch import Tensor

from .types import Attribution, Trace

SILENT = "no patch speaks for the target: the map is zero everywhere"


def patch_features(trace: Trace) -> Tensor:
    """Z: the patch tokens as the last attention gets them, (B, patches, D) float32; each channel is a feature map."""
    assert trace.features is not None
    return trace.features[:, trace.anatomy.prefix :].float()


def patch_gradients(trace: Trace) -> Tensor:
    """G = ∂y/∂Z at the patch tokens, (B, patches, D) float32."""
    assert trace.feature_gradient is not None
    return trace.feature_gradient[:, trace.anatomy.prefix :].float()


def rectified(trace: Trace, values: Tensor) -> Attribution:
    """``relu`` of (B, patches) on the grid; a map with nothing left says so."""
    values = values.clamp(min=0)
    return Attribution(
        values.unflatten(1, trace.anatomy.grid),
        warnings=[[] if some else [SILENT] for some in values.any(1).tolist()],
    )
