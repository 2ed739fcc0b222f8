"""timm's TinyViT."""

from __future__ import annotations

from typing import Any

from timm.models.tiny_vit import TinyVit, TinyVitStage

from ..family import register
from ..layer import Placement
from ..layouts import Grid, blocks, halved, in_windows, numbered
from ..timm_common import Timm
from ..types import Anatomy


@register
class TimmTinyViT(Timm):
    """A stage of convolutions, then attention inside windows, with a convolution in every block."""

    title = "timm TinyViT"
    modules = ("tiny_vit",)
    kinds = (TinyVit,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        grid: Grid = halved(halved((shape[1], shape[2])))
        calls: list[tuple[Placement | None, Grid]] = []
        for stage in model.stages:
            if not isinstance(stage, TinyVitStage):
                continue
            grid = halved(grid)
            tokens = grid[0] * grid[1]
            for block in stage.blocks:
                side: Any = block.window_size
                calls.append((in_windows(blocks(numbered(grid), (side, side), tokens), tokens), grid))
        return self.pyramid(
            model,
            shape,
            calls,
            grid,
            reason="'s attention stays inside windows, and comes after convolutions",
            remembers=True,  # biases of positions
        )
