"""timm models whose attention has no matrix between tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

from timm.models.byobnet import ByobNet
from timm.models.coat import CoaT
from timm.models.edgenext import EdgeNeXt
from timm.models.efficientvit_mit import EfficientVit, EfficientVitLarge
from timm.models.mobilevit import LinearSelfAttention
from timm.models.swiftformer import SwiftFormer
from torch import nn

from ..family import register
from ..structure import pair
from ..timm_common import Timm
from ..types import Anatomy, Attends

CHANNELS = "attention of {} is between channels, which mixes no tokens by a matrix"
LINEAR = "attention of {} is linear: it sums up keys and values before a query reads them, without a matrix over tokens"
POOLED = "attention of {} weighs all tokens into one that every token reads, without a matrix over tokens"
WHY = {
    EdgeNeXt: CHANNELS,
    EfficientVit: LINEAR,
    EfficientVitLarge: LINEAR,
    CoaT: LINEAR,
    SwiftFormer: POOLED,
    ByobNet: POOLED,  # MobileViT V2's
}


@register
class TimmLinear(Timm):
    """Gradients, class activation maps of the last feature map, and perturbation."""

    title = "timm EdgeNeXt, EfficientViT, CoaT, SwiftFormer and MobileViT V2, without methods that read attention"
    attends: Attends = "unread"
    modules = ("edgenext", "efficientvit_mit", "coat", "swiftformer", "mobilevit")
    exclude = ("mobilevit_*",)
    kinds = tuple(WHY)

    def matches(self, model: nn.Module) -> bool:
        if isinstance(model, ByobNet):
            return any(isinstance(part, LinearSelfAttention) for part in model.modules())
        return super().matches(model)

    def built_for(self, model: Any) -> tuple[int, int] | None:
        first = getattr(model, "patch_embed1", None)  # CoaT has one a stage
        return super().built_for(model) if first is None else first.img_size

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        why = next(why for kind, why in WHY.items() if isinstance(model, kind))
        # Convolutions of some EdgeNeXts leave out what their kernels do not fill.
        whole = isinstance(model, EdgeNeXt) and getattr(model.stem[0], "padding", None) == (0, 0)
        anatomy = self.unplaced(model, shape, why.format(self.name(model)), padded=not whole)
        if not isinstance(model, CoaT):
            return anatomy
        self.check_size(model, (shape[1], shape[2]), pair(model.patch_embed1.img_size))
        # Its blocks are called one by one, on tokens with a class token before them.
        last = f"serial_blocks4.{len(model.serial_blocks4) - 1}.norm1"
        if model.parallel_blocks is not None:
            last = f"parallel_blocks.{len(model.parallel_blocks) - 1}.norm14"
        return dataclasses.replace(anatomy, prefix=1, features=last)
