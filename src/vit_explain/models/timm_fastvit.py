"""timm's FastViT."""

from __future__ import annotations

from typing import Any

from timm.models.fastvit import AttentionBlock, FastVit
from torch import nn

from ..family import register
from ..layer import Placement
from ..layouts import Grid, halved, whole
from ..timm_common import Timm
from ..types import Anatomy


@register
class TimmFastViT(Timm):
    """Stages of convolutions, and in larger models a last one or two with attention among all tokens."""

    title = "timm FastViT, where it has attention"
    modules = ("fastvit",)
    exclude = ("fastvit_t*", "fastvit_s12")  # have no attention
    kinds = (FastVit,)

    def matches(self, model: nn.Module) -> bool:
        return super().matches(model) and any(isinstance(part, AttentionBlock) for part in model.modules())

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        grid: Grid = halved(halved((shape[1], shape[2])))
        calls: list[tuple[Placement | None, Grid]] = []
        for stage in model.stages:
            if not isinstance(stage.downsample, nn.Identity):
                grid = halved(grid)
            calls += [(whole(grid[0] * grid[1]), grid) for block in stage.blocks if isinstance(block, AttentionBlock)]
        return self.pyramid(model, shape, calls, grid, reason="'s attention comes after convolutions")
