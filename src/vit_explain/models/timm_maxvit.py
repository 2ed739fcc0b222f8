"""timm's MaxViT and CoAtNet, with their kin."""

from __future__ import annotations

import dataclasses
from typing import Any

from timm.models.maxxvit import MaxxVit, MaxxVitBlock, ParallelMaxxVitBlock, TransformerBlock2d
from torch import Tensor, nn

from ..errors import ModelError
from ..family import register
from ..layer import Placement
from ..layouts import Grid, blocks, coarser, halved, in_windows, laid_out, numbered, strides, whole
from ..timm_common import Timm
from ..types import Anatomy, Readout


@register
class TimmMaxViT(Timm):
    """Convolutions, and attention in blocks of neighbours, then or side by side with it over tokens far apart; in
    CoAtNet among all tokens."""

    title = "timm MaxViT and CoAtNet"
    modules = ("maxxvit",)
    kinds = (MaxxVit,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        self.check_size(model, shape[1:], model.img_size)
        grid: Grid = tuple(-(-side // model.stem.stride) for side in shape[1:])  # type: ignore[assignment]
        places: list[Placement] = []
        first = None
        for stage in model.stages:
            grid, finer = halved(grid), grid
            merged = None if first is None else coarser(finer, grid)
            for block in stage.blocks:
                here = self._places(block, grid, merged)
                if here:
                    first = first or grid
                    merged = None
                places += here
        if first is None:
            raise ModelError(f"{self.name(model)} has no attention")
        if model.global_pool != "avg":
            raise ModelError(f"{self.name(model)} reads its tokens by {model.global_pool!r} pooling")
        stride = model.stem.stride * 2 ** len(model.stages)
        reason = f"{self.name(model)}'s attention stays inside windows, or comes after convolutions"
        return laid_out(
            (shape[1], shape[2]),
            first,
            places,
            grid,
            stride=(stride, stride),
            readout=Readout(patches=True),
            features="norm" if not isinstance(model.norm, nn.Identity) else f"stages.{len(model.stages) - 1}",
            reason=reason,
            undroppable=f"{self.name(model)} has convolutions, which need every place",
        )

    def _places(self, block: Any, grid: Grid, merged: Tensor | None) -> list[Placement]:
        tokens = grid[0] * grid[1]
        if isinstance(block, TransformerBlock2d):
            return [whole(tokens, merged)]
        if isinstance(block, MaxxVitBlock):
            near: Any = block.attn_block
            far: Any = block.attn_grid
            parts = [] if near is None else [blocks(numbered(grid), near.partition_size, tokens)]
            parts.append(strides(numbered(grid), far.partition_size))
            return [in_windows(one, tokens, None if number else merged) for number, one in enumerate(parts)]
        if isinstance(block, ParallelMaxxVitBlock):
            size: Any = block.attn.partition_size
            one, other = blocks(numbered(grid), size, tokens), strides(numbered(grid), size)
            return [in_windows(one, tokens, merged), dataclasses.replace(in_windows(other, tokens), beside=True)]
        return []
