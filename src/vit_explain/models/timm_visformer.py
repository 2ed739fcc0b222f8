"""timm's Visformer."""

from __future__ import annotations

from typing import Any

from timm.models.visformer import Visformer

from ..family import register
from ..layer import Placement
from ..layouts import Grid, whole
from ..timm_common import Timm
from ..types import Anatomy


@register
class TimmVisformer(Timm):
    """A stage of convolutions, then two with attention among all tokens, and convolutions in their MLPs."""

    title = "timm Visformer"
    modules = ("visformer",)
    kinds = (Visformer,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        stem = 1 if model.stem is None else model.stem[0].stride[0]
        sides = model.patch_embed1.img_size
        self.check_size(model, shape[1:], (sides[0] * stem, sides[1] * stem))
        calls: list[tuple[Placement | None, Grid]] = []
        grid: Grid = tuple(model.patch_embed1.grid_size)
        embeds = (model.patch_embed1, model.patch_embed2, model.patch_embed3)
        for embed, stage in zip(embeds, (model.stage1, model.stage2, model.stage3), strict=True):
            grid = grid if embed is None else tuple(embed.grid_size)
            calls += [(whole(grid[0] * grid[1]), grid) for block in stage if block.attn is not None]
        return self.pyramid(model, shape, calls, grid, reason="'s attention comes after convolutions", features="norm")
