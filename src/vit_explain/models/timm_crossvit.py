"""timm's CrossViT."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from timm.models.crossvit import CrossAttentionBlock, CrossVit
from torch import Tensor

from ..errors import ModelError
from ..family import register
from ..layer import Placement
from ..layouts import Grid, in_windows, laid_out, overlaps
from ..timm_common import Timm
from ..types import Anatomy, Readout


@register
class TimmCrossViT(Timm):
    """Two branches with patches of different size: self-attention in each, then each class token asks the other's
    patches.

    The tokens of both branches are carried as one row, and the map is on the grid of the smaller patches, over which
    what a larger patch got is spread by area. Maps of features are those of the branch of small patches, as the other's
    class token reads them last.
    """

    title = "timm CrossViT"
    modules = ("crossvit",)
    kinds = (CrossVit,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        self.check_size(model, shape[1:], model.img_size)
        size, name = (shape[1], shape[2]), self.name(model)
        grids = [_grid(embed) for embed in model.patch_embed]
        if model.num_branches != 2 or model.img_size_scaled[0] != size:
            raise ModelError(f"{name} is no CrossViT of two branches of which the first sees the whole picture")
        if model.global_pool != "token":
            raise ModelError(f"{name} reads its tokens by {model.global_pool!r} pooling of two branches apart")
        starts = (0, 1 + grids[0][0] * grids[0][1])
        tokens = starts[1] + 1 + grids[1][0] * grids[1][1]
        branches = (torch.arange(starts[1]), torch.arange(starts[1], tokens))
        last = len(model.blocks) - 1
        anatomy = laid_out(
            size,
            grids[0],
            [place for block in model.blocks for place in self._places(block, branches, tokens)],
            grids[0],
            prefix=1,
            readout=Readout(tokens=starts),  # the mean of two heads
            features=f"blocks.{last}.{_crossing(model.blocks[last])[1]}.norm1",
            reason=f"{name} has two branches of patches, whose class tokens attend to each other's",
            undroppable=f"{name} has two branches of patches",
        )
        assert anatomy.plan is not None
        spread = torch.zeros(tokens, grids[0][0] * grids[0][1])
        spread[branches[0][1:]] = torch.eye(grids[0][0] * grids[0][1])
        spread[branches[1][1:]] = overlaps(grids[1], grids[0], *_seen(model, size))
        return dataclasses.replace(anatomy, plan=dataclasses.replace(anatomy.plan, spread=spread))

    def _places(self, block: Any, branches: tuple[Tensor, Tensor], tokens: int) -> list[Placement]:
        places: list[Placement] = []
        for own, part in zip(branches, block.blocks, strict=True):
            places += [in_windows(own[None], tokens)] * len(part)
        for own, other in (branches, branches[::-1]):
            keys = torch.cat([own[:1], other[1:]])
            places.append(Placement(own[None, :1], keys[None], tokens, tokens))
        if len(_crossing(block)) != len(branches):
            raise ModelError("CrossViT with several cross attentions in a row is not supported")
        return places


def _grid(embed: Any) -> Grid:
    return embed.img_size[0] // embed.patch_size[0], embed.img_size[1] // embed.patch_size[1]


def _crossing(block: Any) -> list[str]:
    """The names of a block's cross attentions."""
    return [name for name, part in block.named_modules() if isinstance(part, CrossAttentionBlock)]


def _seen(model: Any, size: Grid) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where what the second branch sees begins, and how far it reaches, as shares of the picture's sides."""
    scaled = model.img_size_scaled[1]
    if not model.crop_scale or any(part > whole for part, whole in zip(scaled, size, strict=True)):
        return (0.0, 0.0), (1.0, 1.0)
    begins = [round((whole - part) / 2) / whole for part, whole in zip(scaled, size, strict=True)]
    return (begins[0], begins[1]), (scaled[0] / size[0], scaled[1] / size[1])
