"""torchvision's ``swin_*`` and ``swin_v2_*``."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import ModelError
from ..family import Placed, register
from ..layouts import Grid, convolved, swin
from ..structure import check_size
from ..torchvision_common import Torchvision
from ..types import Anatomy


@register
class TorchvisionSwin(Torchvision, Placed):
    """Attention inside windows, which every second block shifts by half a window; between stages 2×2 tokens merge."""

    title = "torchvision swin_*"
    kind = ("swin_transformer", "SwinTransformer")
    pattern = "swin_*"
    head = "head.weight"

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        check_size(self.name(model), shape, 3, None)
        size, convolution = (shape[1], shape[2]), model.features[0][0]
        first, patch = convolved(size, convolution), convolution.stride
        if 0 in first:
            raise ModelError(f"{self.name(model)} has patches of {patch[0]}x{patch[1]} pixels: {shape[1:]} has none")
        stages = [
            list(part) for part in model.features[1:] if isinstance(part, nn.Sequential)
        ]  # merging lies between them
        return swin(self.name(model), size, first, patch, stages, _windows, features="norm", padded=True)

    def classes(self, model: Any) -> int:
        return getattr(model.head, "out_features", 0)

    def first_weights(self, model: Any) -> Any:
        from torchvision.models import Swin_T_Weights, Swin_V2_T_Weights
        from torchvision.models.swin_transformer import SwinTransformerBlockV2

        second = any(isinstance(part, SwinTransformerBlockV2) for part in model.modules())
        return (Swin_V2_T_Weights if second else Swin_T_Weights).IMAGENET1K_V1

    def input_size(self, model: Any, preset: Any) -> tuple[int, int]:
        return preset.crop_size[0], preset.crop_size[0]


def _windows(block: Any, grid: Grid) -> tuple[Grid, Grid]:
    """(window, shift); along a side that one window covers nothing is shifted."""
    height, width = block.attn.window_size
    down, across = block.attn.shift_size
    return (height, width), (0 if height >= grid[0] else down, 0 if width >= grid[1] else across)
