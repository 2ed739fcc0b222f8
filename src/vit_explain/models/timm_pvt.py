"""timm's pyramids: PVT v2 and Twins."""

from __future__ import annotations

from typing import Any

from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.twins import LocallyGroupedAttn, Twins
from torch import Tensor, nn

from ..family import register
from ..layer import Placement
from ..layouts import Grid, blocks, coarser, convolved, in_windows, laid_out, numbered, to_reduced, whole
from ..timm_common import Timm
from ..types import Anatomy, Readout

LINEAR_GRID = (7, 7)  # what PVT v2's linear attention pools its keys to


def reduced_by(convolution: Any, grid: Grid, merged: Tensor | None) -> Placement:
    """All tokens look at means of blocks of tokens, as large as the convolution's kernel; or at all, without one."""
    if convolution is None:
        return whole(grid[0] * grid[1], merged)
    step = convolution.stride
    return to_reduced(grid, (grid[0] // step[0], grid[1] // step[1]), merged=merged)


@register
class TimmPVT(Timm):
    """Attention from every token to means over blocks of tokens; convolutions between stages halve the grid."""

    title = "timm PVT v2"
    modules = ("pvt_v2",)
    kinds = (PyramidVisionTransformerV2,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        first = grid = convolved((shape[1], shape[2]), model.patch_embed.proj)
        places: list[Placement] = []
        for stage in model.stages:
            merged = None
            if stage.downsample is not None:
                grid, finer = convolved(grid, stage.downsample.proj), grid
                merged = coarser(finer, grid)
            for block in stage.blocks:
                attention = block.attn
                if attention.pool is not None:
                    places.append(to_reduced(grid, LINEAR_GRID, merged=merged))
                else:
                    places.append(reduced_by(attention.sr, grid, merged))
                merged = None
        reason = f"{self.name(model)}'s tokens look at means of tokens"
        return laid_out(
            (shape[1], shape[2]),
            first,
            places,
            grid,
            readout=Readout(patches=True),
            features=f"stages.{len(model.stages) - 1}",
            reason=reason,
            undroppable=f"{self.name(model)} has convolutions, which need every place",
        )


@register
class TimmTwins(Timm):
    """Attention by turns inside windows and to means over blocks of tokens (SVT); to means alone (PCPVT)."""

    title = "timm Twins"
    modules = ("twins",)
    kinds = (Twins,)

    def built_for(self, model: Any) -> tuple[int, int] | None:
        return tuple(model.patch_embeds[0].img_size)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        self.check_size(model, shape[1:], tuple(model.patch_embeds[0].img_size))
        places: list[Placement] = []
        first: Grid | None = None
        grid: Grid = (shape[1], shape[2])
        for embed, stage in zip(model.patch_embeds, model.blocks, strict=True):
            grid, finer = (grid[0] // embed.patch_size[0], grid[1] // embed.patch_size[1]), grid
            merged = None if first is None else coarser(finer, grid)
            first = first or grid
            tokens = grid[0] * grid[1]
            for block in stage:
                if isinstance(block.attn, nn.Identity):
                    continue
                if isinstance(block.attn, LocallyGroupedAttn):
                    side: Any = block.attn.ws
                    windows = blocks(numbered(grid), (side, side), padding=tokens)
                    places.append(in_windows(windows, tokens, merged, windows_first=True))
                else:
                    places.append(reduced_by(block.attn.sr, grid, merged))
                merged = None
        assert first is not None
        return laid_out(
            (shape[1], shape[2]),
            first,
            places,
            grid,
            readout=Readout(patches=True),
            features="norm",
            reason=f"{self.name(model)}'s attention is in windows or to means of tokens",
            undroppable=f"{self.name(model)} has convolutions, which need every place",
        )
