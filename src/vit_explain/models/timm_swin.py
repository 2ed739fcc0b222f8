"""timm's Swin Transformers, first and second version, the latter also in Christoph Reich's code."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from torch import nn

from ..family import register
from ..layouts import Grid, blocks, coarser, halved, in_windows, laid_out, numbered
from ..timm_common import Timm
from ..types import Anatomy, Placement, Readout


@register
class TimmSwin(Timm):
    """Attention inside windows, which every second block shifts by half a window; between stages 2×2 tokens merge."""

    title = "timm Swin and Swin V2"
    modules = ("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr")
    kinds = (SwinTransformer, SwinTransformerV2, SwinTransformerV2Cr)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        embed, size = model.patch_embed, shape[1:]
        self.check_channels(model, shape[0])
        if getattr(embed, "strict_img_size", True) and embed.img_size is not None:
            self.check_size(model, size, embed.img_size)
        first = grid = embed.grid_size if embed.img_size == tuple(size) else embed.dynamic_feat_size(size)
        places: list[Placement] = []
        stages: Any = model.stages if isinstance(model, SwinTransformerV2Cr) else model.layers
        for stage in stages:
            merged = None
            if not isinstance(stage.downsample, nn.Identity):
                grid, finer = halved(grid), grid
                merged = coarser((2 * grid[0], 2 * grid[1]), grid)  # an odd grid is padded before it merges
                merged = merged.view(2 * grid[0], 2 * grid[1])[: finer[0], : finer[1]].flatten()
            for block in stage.blocks:
                places.append(self._place(grid, block.window_size, block.shift_size, merged))
                merged = None
        reason = f"{self.name(model)}'s attention stays inside windows"
        return laid_out(
            (shape[1], shape[2]),
            first,
            places,
            grid,
            covers=(first[0] * embed.patch_size[0], first[1] * embed.patch_size[1]),
            readout=Readout(patches=True),
            features="norm" if hasattr(model, "norm") else f"stages.{len(stages) - 1}",
            reason=reason,
            undroppable=f"{self.name(model)} needs all tokens of its windows",
        )

    def _place(self, grid: Grid, window: Grid, shift: Grid, merged: torch.Tensor | None) -> Placement:
        tokens = grid[0] * grid[1]
        shifted = numbered(grid).roll((-shift[0], -shift[1]), (0, 1))
        return in_windows(blocks(shifted, window, padding=tokens), tokens, merged)
