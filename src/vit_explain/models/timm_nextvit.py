"""timm's Next-ViT."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.nextvit import NextTransformerBlock, NextViT
from torch import nn

from ..family import register
from ..layer import Placement
from ..layouts import Grid, halved, whole
from ..timm_common import Timm
from ..types import Anatomy


@register
class TimmNextViT(Timm):
    """Stages of convolutions that end with attention from every token to means of tokens in a row."""

    title = "timm Next-ViT"
    modules = ("nextvit",)
    kinds = (NextViT,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        grid: Grid = halved(halved((shape[1], shape[2])))
        calls: list[tuple[Placement | None, Grid]] = []
        for stage in model.stages:
            for block in stage.blocks:
                if isinstance(block.patch_embed.pool, nn.AvgPool2d):
                    grid = halved(grid)
                if isinstance(block, NextTransformerBlock):
                    calls.append((_place(grid[0] * grid[1], block.e_mhsa.N_ratio), grid))
        return self.pyramid(
            model, shape, calls, grid, reason="'s tokens look at means of tokens, after convolutions", features="norm"
        )


def _place(tokens: int, together: int) -> Placement:
    """Keys are means of so many tokens, one after the other as rows follow each other; a rest is left out."""
    if together == 1:
        return whole(tokens)
    cells = tokens // together
    pooled = torch.arange(tokens) // together
    return Placement(torch.arange(tokens)[None], torch.arange(cells)[None], tokens, tokens, pooled=pooled)
