"""timm's Hiera as the image encoder of Segment Anything 2."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.hieradet_sam2 import HieraDet

from ..errors import ModelError
from ..family import register
from ..layer import Placement
from ..layouts import Grid, blocks, coarser, convolved, laid_out, numbered
from ..timm_common import Timm
from ..types import Anatomy


@register
class TimmHieraDet(Timm):
    """Attention inside windows, in a few blocks among all tokens; at a stage's first block groups of queries become
    their maximum."""

    title = "timm Hiera of SAM 2"
    modules = ("hieradet_sam2",)
    kinds = (HieraDet,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        embed, size = model.patch_embed, (shape[1], shape[2])
        first = grid = embed.dynamic_feat_size(size) if isinstance(embed, PatchEmbed) else convolved(size, embed.proj)
        places: list[Placement] = []
        for block in model.blocks:
            leaving = grid if block.q_stride is None else (grid[0] // block.q_stride[0], grid[1] // block.q_stride[1])
            places.append(self._place(model, block, grid, leaving))
            grid = leaving
        return laid_out(
            size,
            first,
            places,
            grid,
            readout=self.averaged(model),
            features=f"blocks.{len(model.blocks) - 1}",
            reason=f"{self.name(model)}'s attention stays inside windows in most blocks",
            undroppable=f"{self.name(model)} needs all tokens of its windows",
        )

    def _place(self, model: Any, block: Any, grid: Grid, leaving: Grid) -> Placement:
        entering, left = grid[0] * grid[1], leaving[0] * leaving[1]
        step: Grid = block.q_stride or (1, 1)
        if block.is_windowed:
            window: Grid = block.window_size
            keys = blocks(numbered(grid), window, entering)
            queries = blocks(numbered(leaving), (window[0] // step[0], window[1] // step[1]), left)
        else:
            keys, queries = torch.arange(entering)[None], torch.arange(left)[None]
        if len(keys) != len(queries):
            raise ModelError(
                f"{self.name(model)} pools a {grid[0]}x{grid[1]} grid that its windows do not divide; "
                "use pictures of the size it was built for"
            )
        return Placement(queries, keys, entering, left, skip=coarser(grid, leaving) if leaving != grid else None)
