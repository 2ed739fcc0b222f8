"""timm's DaViT."""

from __future__ import annotations

from typing import Any

from timm.models.davit import DaVit
from torch import nn

from ..family import register
from ..layer import Placement
from ..layouts import Grid, blocks, halved, in_windows, numbered
from ..timm_common import Timm
from ..types import Anatomy


@register
class TimmDaViT(Timm):
    """By turns attention inside windows, and attention between channels, which mixes no tokens and is passed over."""

    title = "timm DaViT"
    modules = ("davit",)
    kinds = (DaVit,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        down, across = model.stem.stride
        first = grid = (-(-shape[1] // down), -(-shape[2] // across))  # pictures are padded
        calls: list[tuple[Placement | None, Grid]] = []
        for stage in model.stages:
            if not isinstance(stage.downsample, nn.Identity):
                grid = halved(grid)
            for block in (part for pair in stage.blocks for part in pair):
                tokens, size = grid[0] * grid[1], getattr(block, "window_size", None)
                calls.append((None if size is None else in_windows(blocks(numbered(grid), size, tokens), tokens), grid))
        return self.pyramid(
            model,
            shape,
            calls,
            grid,
            reason="'s attention is in windows by turns with attention between channels",
            covers=(first[0] * down, first[1] * across),
        )
