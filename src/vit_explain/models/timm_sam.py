"""timm's image encoders of Segment Anything."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer_sam import VisionTransformerSAM

from ..family import register
from ..layouts import blocks, in_windows, laid_out, numbered, whole
from ..timm_common import Timm
from ..types import Anatomy, Readout


@register
class TimmSAM(Timm):
    """Attention inside windows, and in a few blocks among all tokens."""

    title = "timm SAM image encoders"
    modules = ("vision_transformer_sam",)
    kinds = (VisionTransformerSAM,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        embed = model.patch_embed
        self.check_channels(model, shape[0])
        self.check_size(model, shape[1:], tuple(embed.img_size))
        grid = tuple(embed.grid_size)
        tokens, places = grid[0] * grid[1], []
        for block in model.blocks:
            side = block.window_size
            if side:
                windows = blocks(numbered(grid), (side, side), padding=tokens)
                places.append(in_windows(windows, tokens, windows_first=True))
            else:
                places.append(whole(tokens))
        return laid_out(
            (shape[1], shape[2]),
            grid,
            places,
            grid,
            readout=Readout(patches=True),
            features=f"blocks.{len(model.blocks) - 1}",
            reason=f"{self.name(model)}'s attention stays inside windows in most blocks",
            undroppable=f"{self.name(model)} needs all tokens of its windows",
        )
