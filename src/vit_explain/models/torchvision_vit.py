"""torchvision's ``vit_*``: one class token, learned positions for one square size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..family import register
from ..structure import anatomy_of, check_size, output_projection, replayed
from ..torchvision_common import Torchvision
from ..types import Anatomy, Attends, Readout


@register
class TorchvisionViT(Torchvision):
    """``torchvision.models.VisionTransformer``."""

    title = "torchvision vit_*"
    attends: Attends = "everywhere"
    kind = ("vision_transformer", "VisionTransformer")
    pattern = "vit_*"
    head = "heads.head.weight"

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        side, patch = model.image_size, model.patch_size
        check_size(self.name(model), shape, 3, (side, side))
        grid = (side // patch, side // patch)
        return anatomy_of(model, self._blocks(model), grid, (patch, patch), 1, Readout(tokens=(0,)))

    def _blocks(self, model: Any) -> list[str]:
        return [f"encoder.layers.{name}" for name, _ in model.encoder.layers.named_children()]

    def lens(self, model: Any, tokens: Tensor) -> Any:
        return replayed(model, self._blocks(model)[-1], (3, model.image_size, model.image_size), tokens)

    def projection(self, model: Any, block: int) -> Tensor:
        return output_projection(model.encoder.layers[block])

    def classes(self, model: Any) -> int:
        return getattr(model.heads[-1], "out_features", 0) if isinstance(model.heads, nn.Sequential) else 0

    def first_weights(self, model: Any) -> Any:
        from torchvision.models import ViT_B_16_Weights

        return ViT_B_16_Weights.IMAGENET1K_V1

    def input_size(self, model: Any, preset: Any) -> tuple[int, int]:
        return model.image_size, model.image_size
