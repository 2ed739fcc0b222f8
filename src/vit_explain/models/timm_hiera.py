"""timm's Hiera."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.hiera import Hiera
from torch import Tensor

from ..errors import ModelError
from ..family import register
from ..layer import Placement
from ..layouts import Grid, laid_out, numbered
from ..timm_common import Timm
from ..types import Anatomy, Readout


@register
class TimmHiera(Timm):
    """Attention inside mask units, later among all tokens; at a few blocks groups of queries become their maximum.

    The model keeps its tokens in an order of its own, in which tokens that will be pooled lie a fixed distance apart.
    """

    title = "timm Hiera"
    modules = ("hiera",)
    kinds = (Hiera,)

    def built_for(self, model: Any) -> tuple[int, int]:
        tokens, stride = model.tokens_spatial_shape, model.patch_stride
        return tokens[0] * stride[0], tokens[1] * stride[1]

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        fine = tuple(model.tokens_spatial_shape)
        self.check_size(model, shape[1:], self.built_for(model))
        schedule = model.unroll.schedule
        merged: Tensor | None = unrolled(fine, schedule).argsort()
        places, tokens, grid = [], fine[0] * fine[1], fine
        pooled = iter(schedule)
        for block in model.blocks:
            attention = block.attn
            places.append(self._place(tokens, attention, merged))
            merged = None
            if attention.q_stride > 1:
                step = next(pooled)
                grid = grid[0] // step[0], grid[1] // step[1]
                tokens //= attention.q_stride
        if next(pooled, None) is not None:
            raise ModelError(f"{self.name(model)} does not pool as often as its tokens are reordered for")
        return laid_out(
            (shape[1], shape[2]),
            fine,
            places,
            grid,
            readout=Readout(patches=True),
            features=f"blocks.{len(model.blocks) - 1}",
            reason=f"{self.name(model)}'s attention stays inside mask units in early blocks",
            undroppable=f"{self.name(model)} needs all tokens of its mask units",
        )

    def _place(self, tokens: int, attention: Any, merged: Tensor | None) -> Placement:
        stride = attention.q_stride
        windows = tokens // (stride * attention.window_size) if attention.use_mask_unit_attn else 1
        keys = torch.arange(tokens).view(-1, windows).T  # token a·W + w is the a-th of window w
        leaving = tokens // stride
        queries = torch.arange(leaving).view(-1, windows).T
        skip = None if stride == 1 else torch.arange(tokens) % leaving
        return Placement(queries, keys, tokens, leaving, skip=skip, merged=merged)


def unrolled(grid: Grid, schedule: list[Grid]) -> Tensor:
    """The number, row by row, of each token in Hiera's order: strides move to the front, the first one outermost."""
    tokens = numbered(grid)[None]
    for step in schedule:
        h, w = tokens.shape[1] // step[0], tokens.shape[2] // step[1]
        tokens = tokens.view(-1, h, step[0], w, step[1]).permute(0, 2, 4, 1, 3).reshape(-1, h, w)
    return tokens.flatten()
