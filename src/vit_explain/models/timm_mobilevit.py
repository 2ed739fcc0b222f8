"""timm's MobileViT."""

from __future__ import annotations

from typing import Any

from timm.models.byobnet import ByobNet
from timm.models.mobilevit import MobileVitBlock
from torch import nn

from ..family import register
from ..layer import Placement
from ..layouts import Grid, convolved, in_windows, numbered, strides
from ..timm_common import Timm
from ..types import Anatomy


@register
class TimmMobileViT(Timm):
    """Convolutions, and attention among tokens that lie at the same place of their patches, over the whole grid."""

    title = "timm MobileViT"
    modules = ("mobilevit",)
    exclude = ("mobilevitv2_*",)
    kinds = (ByobNet,)

    def matches(self, model: nn.Module) -> bool:
        return super().matches(model) and any(isinstance(part, MobileVitBlock) for part in model.modules())

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        name = self.name(model)
        grid: Grid = _after(model.stem, (shape[1], shape[2]))
        calls: list[tuple[Placement | None, Grid]] = []
        for block in (block for stage in model.stages for block in stage):
            if not isinstance(block, MobileVitBlock):
                grid = _after(block, grid)
                continue
            attending: Any = block
            patch = attending.patch_size
            if grid[0] % patch[0] or grid[1] % patch[1]:
                return self.unplaced(
                    model, shape, f"{name} resizes its {grid[0]}x{grid[1]} grid to attend on one that patches divide"
                )
            windows = strides(numbered(grid), (grid[0] // patch[0], grid[1] // patch[1]))
            calls += [(in_windows(windows, grid[0] * grid[1]), grid)] * len(attending.transformer)
        return self.pyramid(
            model,
            shape,
            calls,
            grid,
            reason="'s attention is among tokens at the same place of their patches, after convolutions",
        )


def _after(part: nn.Module, grid: Grid) -> Grid:
    """How large a grid is after the strided convolution in this part; one beside it, in the shortcut, is as strided."""
    strided = [one for one in part.modules() if isinstance(one, nn.Conv2d) and max(one.stride) > 1]
    return convolved(grid, strided[0]) if strided else grid
