"""timm's NesT."""

from __future__ import annotations

from typing import Any

from timm.models.nest import Nest

from ..family import register
from ..layer import Placement
from ..layouts import Grid, blocks, halved, in_windows, numbered
from ..timm_common import Timm
from ..types import Anatomy


@register
class TimmNest(Timm):
    """Attention inside blocks of neighbours; between levels 2×2 blocks become one, until one is left."""

    title = "timm NesT"
    modules = ("nest",)
    kinds = (Nest,)

    def built_for(self, model: Any) -> tuple[int, int]:
        return tuple(model.patch_embed.img_size)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        self.check_size(model, shape[1:], self.built_for(model))
        grid: Grid = tuple(model.patch_embed.grid_size)
        calls: list[tuple[Placement | None, Grid]] = []
        for number, level in enumerate(model.levels):
            grid = halved(grid) if number else grid
            tokens, side = grid[0] * grid[1], level.block_size
            place = in_windows(blocks(numbered(grid), (side, side), tokens), tokens)
            calls += [(place, grid)] * len(level.transformer_encoder)
        return self.pyramid(
            model,
            shape,
            calls,
            grid,
            reason="'s attention stays inside blocks",
            features=f"levels.{len(model.levels) - 1}",
        )
