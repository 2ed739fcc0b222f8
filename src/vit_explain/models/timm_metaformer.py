"""timm's MetaFormers with attention, CAFormer."""

from __future__ import annotations

from typing import Any

from timm.models.metaformer import Attention, MetaFormer
from torch import nn

from ..family import register
from ..layer import Placement
from ..layouts import Grid, convolved, whole
from ..timm_common import Timm
from ..types import Anatomy


@register
class TimmMetaFormer(Timm):
    """Stages of convolutions, then stages with attention among all tokens."""

    title = "timm CAFormer"
    modules = ("metaformer",)
    exclude = ("convformer_*", "poolformer*")  # have no attention
    kinds = (MetaFormer,)

    def matches(self, model: nn.Module) -> bool:
        return super().matches(model) and any(isinstance(part, Attention) for part in model.modules())

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        grid: Grid = convolved((shape[1], shape[2]), model.stem.conv)
        calls: list[tuple[Placement | None, Grid]] = []
        for stage in model.stages:
            if not isinstance(stage.downsample, nn.Identity):
                grid = convolved(grid, stage.downsample.conv)
            calls += [
                (whole(grid[0] * grid[1]), grid) for block in stage.blocks if isinstance(block.token_mixer, Attention)
            ]
        return self.pyramid(model, shape, calls, grid, reason="'s attention comes after convolutions")
