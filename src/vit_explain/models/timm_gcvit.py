"""timm's GCViT."""

from __future__ import annotations

from typing import Any

from timm.models.gcvit import GlobalContextVit
from torch import nn

from ..errors import ModelError
from ..family import register
from ..layer import Placement
from ..layouts import Grid, blocks, halved, in_windows, numbered
from ..timm_common import Timm
from ..types import Anatomy

POOLS = (nn.MaxPool2d, nn.AvgPool2d)


@register
class TimmGCViT(Timm):
    """Attention inside windows; in every second block the queries are made of the whole picture, the same for all
    windows, while keys and values stay the window's own."""

    title = "timm GCViT"
    modules = ("gcvit",)
    kinds = (GlobalContextVit,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        grid: Grid = halved(halved((shape[1], shape[2])))
        calls: list[tuple[Placement | None, Grid]] = []
        for stage in model.stages:
            if not isinstance(stage.downsample, nn.Identity):
                grid = halved(grid)
            levels = sum(isinstance(part, POOLS) for part in stage.global_block.modules())
            for block in stage.blocks:
                window = block.window_size
                if grid != (window[0] * 2**levels, window[1] * 2**levels):
                    raise ModelError(
                        f"{self.name(model)} was built for another size of pictures: its {window[0]}x{window[1]} "
                        f"windows and global queries do not fit a {grid[0]}x{grid[1]} grid"
                    )
                tokens = grid[0] * grid[1]
                calls.append((in_windows(blocks(numbered(grid), window, tokens), tokens), grid))
        return self.pyramid(model, shape, calls, grid, reason="'s attention stays inside windows")
