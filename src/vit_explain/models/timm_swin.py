"""timm's Swin Transformers, first and second version, the latter also in Christoph Reich's code."""

from __future__ import annotations

from typing import Any

from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from torch import nn

from ..family import register
from ..layouts import swin
from ..timm_common import Timm
from ..types import Anatomy


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
        first = embed.grid_size if embed.img_size == tuple(size) else embed.dynamic_feat_size(size)
        stages: Any = model.stages if isinstance(model, SwinTransformerV2Cr) else model.layers
        return swin(
            self.name(model),
            (shape[1], shape[2]),
            first,
            embed.patch_size,
            [stage.blocks for stage in stages],
            lambda block, _: (block.window_size, block.shift_size),
            features="norm" if hasattr(model, "norm") else f"stages.{len(stages) - 1}",
            merges=lambda number: not isinstance(stages[number].downsample, nn.Identity),
        )
