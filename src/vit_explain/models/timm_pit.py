"""timm's PiT and LeViT: attention among all tokens of grids that become coarser."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.levit import Levit
from timm.models.pit import PoolingVisionTransformer
from torch import nn

from ..family import register
from ..layer import Placement
from ..layouts import Grid, coarser, halved, laid_out, whole
from ..timm_common import Timm
from ..types import Anatomy, Readout


@register
class TimmPiT(Timm):
    """Ordinary blocks; between stages a convolution merges patches, and the class token goes along."""

    title = "timm PiT"
    modules = ("pit",)
    kinds = (PoolingVisionTransformer,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        self.check_size(model, shape[1:], tuple(model.patch_embed.img_size))
        first: Grid = (model.patch_embed.height, model.patch_embed.width)
        grid, prefix, places = first, model.cls_token.shape[1], []
        for stage in model.transformers:
            merged = None
            if stage.pool is not None:
                grid, finer = halved(grid), grid
                merged = coarser(finer, grid, prefix)
            for number in range(len(stage.blocks)):
                places.append(whole(prefix + grid[0] * grid[1], None if number else merged))
        last = len(model.transformers) - 1
        return laid_out(
            (shape[1], shape[2]),
            first,
            places,
            grid,
            prefix=prefix,
            readout=Readout(tokens=tuple(range(prefix))),  # with distillation the mean of two heads
            features=f"transformers.{last}.blocks.{len(model.transformers[last].blocks) - 1}.norm1",
            reason=f"{self.name(model)} merges patches on its way",
            undroppable=f"{self.name(model)} merges patches on its way",
        )


@register
class TimmLeViT(Timm):
    """A stem of convolutions, and attention; at the start of a stage every second token asks, all answer, and
    nothing goes around it."""

    title = "timm LeViT"
    modules = ("levit",)
    kinds = (Levit,)

    def built_for(self, model: Any) -> tuple[int, int]:
        # Its configuration says what the weights were trained on, and it may have been built for another size.
        height, width = model.stages[0].blocks[0].attn.resolution
        return height * model.stem.stride, width * model.stem.stride

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        self.check_size(model, shape[1:], self.built_for(model))
        stride = model.stem.stride
        first = grid = (-(-shape[1] // stride), -(-shape[2] // stride))
        places = []
        for stage in model.stages:
            if not isinstance(stage.downsample, nn.Identity):
                grid, finer = halved(grid), grid
                stride *= 2
                entering, leaving = finer[0] * finer[1], grid[0] * grid[1]
                nowhere = torch.full((entering,), leaving)
                queries, keys = torch.arange(leaving)[None], torch.arange(entering)[None]
                places.append(Placement(queries, keys, entering, leaving, skip=nowhere))
            places += [whole(grid[0] * grid[1])] * len(stage.blocks)
        return laid_out(
            (shape[1], shape[2]),
            first,
            places,
            grid,
            stride=(stride, stride),
            readout=Readout(patches=True),
            features=f"stages.{len(model.stages) - 1}",
            reason=f"{self.name(model)} merges patches on its way",
            undroppable=f"{self.name(model)} has a stem of convolutions",
            remembers=True,  # biases of positions
        )
