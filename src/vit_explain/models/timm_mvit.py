"""timm's MViT v2."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.mvitv2 import MultiScaleVit

from ..family import register
from ..layer import Placement
from ..layouts import Grid, coarser, convolved, laid_out
from ..timm_common import Timm
from ..types import Anatomy, Readout


@register
class TimmMViT(Timm):
    """Attention among all tokens, with keys that are pooled; at a stage's first block the queries are pooled too."""

    title = "timm MViT v2"
    modules = ("mvitv2",)
    kinds = (MultiScaleVit,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        prefix = model.num_prefix_tokens
        first = convolved((shape[1], shape[2]), model.patch_embed.proj)
        grid, places = first, []
        for stage in model.stages:
            for block in stage.blocks:
                attention = block.attn
                keys, queries = _pooled(grid, attention.pool_k), _pooled(grid, attention.pool_q)
                places.append(_place(grid, keys, queries, prefix))
                grid = queries
        by_token, last = model.global_pool == "token", len(model.stages) - 1
        return laid_out(
            (shape[1], shape[2]),
            first,
            places,
            grid,
            prefix=prefix,
            readout=Readout(tokens=(0,)) if by_token else Readout(patches=True),
            features=f"stages.{last}.blocks.{len(model.stages[last].blocks) - 1}.norm1" if by_token else "norm",
            reason=f"{self.name(model)}'s tokens look at pooled tokens",
            undroppable=f"{self.name(model)} pools its tokens, and needs all of them",
        )


def _place(grid: Grid, keys: Grid, queries: Grid, prefix: int) -> Placement:
    entering, cells, leaving = (prefix + side[0] * side[1] for side in (grid, keys, queries))
    return Placement(
        torch.arange(leaving)[None],
        torch.arange(cells)[None],
        entering,
        leaving,
        pooled=None if keys == grid else coarser(grid, keys, prefix),
        skip=None if queries == grid else coarser(grid, queries, prefix),
    )


def _pooled(grid: Grid, convolution: Any) -> Grid:
    if convolution is None:
        return grid
    stride = convolution.stride
    return -(-grid[0] // stride[0]), -(-grid[1] // stride[1])
