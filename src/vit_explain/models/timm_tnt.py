"""timm's TNT."""

from __future__ import annotations

from typing import Any

from timm.models.tnt import TNT

from ..family import register
from ..layouts import laid_out, whole
from ..timm_common import Timm
from ..types import Anatomy


@register
class TimmTNT(Timm):
    """Attention inside each patch, which reaches no other and is passed over, then attention among the patches."""

    title = "timm TNT"
    modules = ("tnt",)
    kinds = (TNT,)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        self.check_size(model, shape[1:], tuple(model.pixel_embed.img_size))
        grid = tuple(model.pixel_embed.grid_size)
        places = [None, whole(1 + grid[0] * grid[1])] * len(model.blocks)
        return laid_out(
            (shape[1], shape[2]),
            grid,
            places,
            grid,
            prefix=1,
            readout=self.readout(model),
            features=f"blocks.{len(model.blocks) - 1}.norm_out",
            reason=f"{self.name(model)} also has attention inside patches",
            undroppable=f"{self.name(model)} has tokens inside its patches too",
        )
