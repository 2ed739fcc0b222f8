"""timm's TinyViT."""

from __future__ import annotations

from typing import Any

from timm.models.tiny_vit import TinyVit, TinyVitStage

from ..family import register
from ..layouts import Grid, blocks, halved, in_windows, laid_out, merging, numbered
from ..timm_common import Timm
from ..types import Anatomy, Placement


@register
class TimmTinyViT(Timm):
    """A stage of convolutions, then attention inside windows, with a convolution in every block."""

    title = "timm TinyViT"
    modules = ("tiny_vit",)
    kinds = (TinyVit,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        grid: Grid = halved(halved((shape[1], shape[2])))
        places: list[Placement | None] = []
        grids: list[Grid] = []
        for stage in model.stages:
            if not isinstance(stage, TinyVitStage):
                continue
            grid = halved(grid)
            tokens = grid[0] * grid[1]
            for block in stage.blocks:
                side: Any = block.window_size
                places.append(in_windows(blocks(numbered(grid), (side, side), tokens), tokens))
                grids.append(grid)
        return laid_out(
            (shape[1], shape[2]),
            grids[0],
            merging(places, grids),
            grid,
            readout=self.averaged(model),
            features=f"stages.{len(model.stages) - 1}",
            reason=f"{self.name(model)}'s attention stays inside windows, and comes after convolutions",
            undroppable=f"{self.name(model)} has convolutions, which need every place",
            remembers=True,  # biases of positions
        )
