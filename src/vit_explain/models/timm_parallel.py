"""timm's Vision Transformers whose blocks hold two attentions: side by side, or one taken from the other."""

from __future__ import annotations

import dataclasses
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..family import register
from ..layouts import laid_out, whole
from ..structure import part
from ..timm_common import DIFFERENTIAL, NORMS, TWO_ATTENTIONS, Timm, two_attentions
from ..types import Anatomy


@register
class TimmParallel(Timm):
    """Attentions side by side on the same input, of which the mean counts (Touvron et al., Three things everyone
    should know about Vision Transformers, ECCV 2022).

    Differential attention, ``(softmax(Q₁K₁ᵀ) − λ softmax(Q₂K₂ᵀ)) V`` normalised head by head (Ye et al., Differential
    Transformer, ICLR 2025), is left to other methods.
    """

    title = "timm ViTs with attentions side by side; differential ones without methods that read attention"

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, VisionTransformer) and two_attentions(model)

    def names(self) -> list[str]:
        return [name for pattern in TWO_ATTENTIONS for name in timm.list_models(pattern, module="vision_transformer")]

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        embed, name = model.patch_embed, self.name(model)
        if model.dynamic_img_size:
            grid = self.grid_of(model, embed, (shape[1], shape[2]))
        else:
            self.check_size(model, shape[1:], tuple(embed.img_size))
            grid = tuple(embed.grid_size)
        prefix, last = model.num_prefix_tokens, len(model.blocks) - 1
        place = whole(prefix + grid[0] * grid[1])
        places = [
            dataclasses.replace(place, beside=number > 0)
            for block in model.blocks
            for number in range(getattr(block, "num_parallel", 0))
        ]
        differential = any(isinstance(one, DIFFERENTIAL) for one in model.modules())
        patch = embed.patch_size
        return laid_out(
            (shape[1], shape[2]),
            grid,
            () if differential else places,
            grid,
            covers=(grid[0] * patch[0], grid[1] * patch[1]),
            prefix=prefix,
            readout=self.readout(model) if model.global_pool in ("avg", "token") else self.averaged(model),
            features=f"blocks.{last}.{part(model.blocks[last], NORMS)[0]}",
            reason=f"attention of {name} is the difference of two softmaxes, normalised in every head, which is no "
            "distribution over tokens"
            if differential
            else f"{name} has several attentions side by side in a block",
            undroppable=f"{name} is not known to go without some of its tokens",
        )
