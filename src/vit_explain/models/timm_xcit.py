"""timm's XCiT, whose patches exchange information by attention between channels."""

from __future__ import annotations

from typing import Any

from timm.models.xcit import Xcit
from torch import nn

from ..family import register
from ..layer import Placement
from ..layouts import Grid, convolved, from_class_token, laid_out
from ..timm_common import Timm
from ..types import Anatomy, Readout


@register
class TimmXcit(Timm):
    """Attention between channels, which mixes no tokens and is passed over; then class attention over the patches."""

    title = "timm XCiT"
    modules = ("xcit",)
    kinds = (Xcit,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        grid: Grid = (shape[1], shape[2])
        for part in model.patch_embed.proj.modules():
            if isinstance(part, nn.Conv2d):
                grid = convolved(grid, part)
        reading = () if model.cls_attn_blocks is None else model.cls_attn_blocks
        by_token = bool(reading) and model.global_pool == "token"
        places: list[Placement | None] = []
        if by_token:  # else the head reads patches, which no attention between tokens reaches
            places = [None] * len(model.blocks) + [from_class_token(1 + grid[0] * grid[1])] * len(reading)
        return laid_out(
            (shape[1], shape[2]),
            grid,
            places,
            grid,
            prefix=model.num_prefix_tokens,
            readout=Readout(tokens=(0,)) if by_token else Readout(patches=True),
            features=f"cls_attn_blocks.{len(reading) - 1}.norm1" if by_token else "norm",
            reason=f"patches of {self.name(model)} exchange information by attention between channels, which attention "
            "methods do not see, and only its class token attends to them",
            undroppable=f"{self.name(model)} has convolutions, which need every place",
        )
