"""timm's EfficientFormer."""

from __future__ import annotations

from typing import Any

from timm.models.efficientformer import EfficientFormer, MetaBlock1d
from torch import nn

from ..errors import ModelError
from ..family import register
from ..layouts import Grid, convolved, laid_out, whole
from ..timm_common import Timm
from ..types import Anatomy


@register
class TimmEfficientFormer(Timm):
    """Blocks that average neighbours, and a few last blocks with attention among all tokens."""

    title = "timm EfficientFormer"
    modules = ("efficientformer",)
    kinds = (EfficientFormer,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        grid: Grid = convolved(convolved((shape[1], shape[2]), model.stem.conv1), model.stem.conv2)
        for stage in model.stages:
            if not isinstance(stage.downsample, nn.Identity):
                grid = convolved(grid, stage.downsample.conv)
        attending: list[Any] = [part for part in model.modules() if isinstance(part, MetaBlock1d)]
        tokens = grid[0] * grid[1]
        built = len(attending[-1].token_mixer.attention_bias_idxs) if attending else tokens
        if built != tokens:
            raise ModelError(
                f"{self.name(model)} attends among {built} tokens, but {shape[1]}x{shape[2]} pixels make {tokens}"
            )
        return laid_out(
            (shape[1], shape[2]),
            grid,
            [whole(tokens)] * len(attending),
            grid,
            readout=self.averaged(model),
            features="norm" if attending else f"stages.{len(model.stages) - 1}",
            reason=f"{self.name(model)} has attention in its last blocks alone",
            undroppable=f"{self.name(model)} averages neighbours, and needs every place",
            remembers=True,  # biases of positions
        )
