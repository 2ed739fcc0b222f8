"""timm models whose class token comes late: CaiT and VOLO, which read the patches by class attention, and ConViT."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.cait import Cait
from timm.models.convit import ConVit
from timm.models.volo import VOLO, Outlooker, Transformer

from ..errors import ModelError
from ..family import register
from ..layer import Placement
from ..layouts import from_class_token, laid_out, whole
from ..timm_common import Timm
from ..types import Anatomy


def among_patches(tokens: int) -> Placement:
    """Self-attention of all tokens but the first, the class token, which is not there yet."""
    patches = torch.arange(1, tokens)[None]
    return Placement(patches, patches, tokens, tokens)


@register
class TimmCait(Timm):
    """Self-attention of the patches, mixed over heads after the softmax, then class attention."""

    title = "timm CaiT"
    modules = ("cait",)
    kinds = (Cait,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        self.check_size(model, shape[1:], model.patch_embed.img_size)
        grid = tuple(model.patch_embed.grid_size)
        tokens = 1 + grid[0] * grid[1]
        trunk = [among_patches(tokens)] * len(model.blocks)
        read = [from_class_token(tokens)] * len(model.blocks_token_only or ())
        return laid_out(
            (shape[1], shape[2]),
            grid,
            [*trunk, *read],
            grid,
            prefix=1,
            readout=self.readout(model),
            features=f"blocks_token_only.{len(read) - 1}.norm1",
            reason=f"in {self.name(model)} only late blocks have a class token",
            undroppable=f"{self.name(model)} has no class token while its patches attend",
        )


@register
class TimmConVit(Timm):
    """Attention that is partly of positions; the class token joins for the last blocks."""

    title = "timm ConViT"
    modules = ("convit",)
    kinds = (ConVit,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        self.check_size(model, shape[1:], model.patch_embed.img_size)
        grid = tuple(model.patch_embed.grid_size)
        tokens = 1 + grid[0] * grid[1]
        late = len(model.blocks) - model.local_up_to_layer
        places = [among_patches(tokens)] * model.local_up_to_layer
        places += [whole(tokens)] * late
        return laid_out(
            (shape[1], shape[2]),
            grid,
            places,
            grid,
            prefix=1,
            readout=self.readout(model),
            features=f"blocks.{len(model.blocks) - 1}.norm1",
            reason=f"in {self.name(model)} only late blocks have a class token",
            undroppable=f"{self.name(model)} gives positions to attention, not to tokens",
            remembers=True,  # its tables of relative positions
        )


@register
class TimmVolo(Timm):
    """Outlook attention, which reaches as far as a convolution and is passed over, then self- and class attention."""

    title = "timm VOLO"
    modules = ("volo",)
    kinds = (VOLO,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        positions = model.pos_embed.shape[1:3]
        embed = model.patch_embed
        step = embed.proj.stride[0] * (1 if embed.conv is None else embed.conv[0].stride[0]) * model.pooling_scale
        self.check_size(model, shape[1:], (positions[0] * step, positions[1] * step))
        grid = (int(positions[0]), int(positions[1]))
        tokens = 1 + grid[0] * grid[1]
        parts = [part for part in model.modules() if isinstance(part, (Outlooker, Transformer))]
        if model.post_network is None:
            raise ModelError(f"{self.name(model)} has no class attention")
        places = [among_patches(tokens) if isinstance(part, Transformer) else None for part in parts]
        places += [from_class_token(tokens)] * len(model.post_network)
        return laid_out(
            (shape[1], shape[2]),
            grid,
            places,
            grid,
            prefix=1,
            readout=self.readout(model),
            features=f"post_network.{len(model.post_network) - 1}.norm1",
            reason=f"in {self.name(model)} only late blocks have a class token",
            undroppable=f"{self.name(model)} has convolutions, which need every place",
        )
