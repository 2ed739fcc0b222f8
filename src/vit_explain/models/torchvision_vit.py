"""torchvision's ``vit_*``: one class token, learned positions for one square size."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..errors import ModelError, reason
from ..family import register
from ..image import Preprocessing
from ..structure import anatomy_of, check_size, output_projection, replayed
from ..types import Anatomy, Readout
from ..weights import load_weights, read_state

PREFIX = "torchvision/"
HEAD = "heads.head.weight"


@register
class TorchvisionViT:
    """``torchvision.models.VisionTransformer``."""

    title = "torchvision vit_*"

    def __init__(self) -> None:
        # A model does not say which of its architecture's weights it has.
        self._weights: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()

    def matches(self, model: nn.Module) -> bool:
        return any(
            kind.__module__ == "torchvision.models.vision_transformer" and kind.__name__ == "VisionTransformer"
            for kind in type(model).__mro__
        )

    def refuses(self, model: nn.Module) -> str | None:
        if not type(model).__module__.startswith("torchvision."):
            return None
        return f"torchvision's {type(model).__name__} is not supported; supported: {self.title}"

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

    def logits(self, output: Any) -> Tensor:
        return output

    def preprocessing(self, model: Any) -> Preprocessing:
        preset = self._preset(model)
        side = model.image_size
        resize = preset.resize_size[0] * side / preset.crop_size[0]
        return Preprocessing(
            size=(side, side),
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=preset.interpolation.value,
            crop_pct=side / resize,
        )

    def _preset(self, model: Any) -> Any:
        """The transform of the model's weights, or else that of torchvision's own first weights."""
        from torchvision.models import ViT_B_16_Weights

        return self._weights.get(model, ViT_B_16_Weights.IMAGENET1K_V1).transforms()

    def labels(self, model: Any) -> list[str] | None:
        from torchvision.models import ViT_B_16_Weights

        known = self._weights.get(model, ViT_B_16_Weights.IMAGENET1K_V1).meta["categories"]
        return list(known) if len(known) == self.classes(model) else None

    def name(self, model: Any) -> str:
        weights = self._weights.get(model)
        if weights is None:
            return type(model).__name__
        # ViT_B_16_Weights.IMAGENET1K_V1 are weights of vit_b_16.
        return PREFIX + type(weights).__name__.removesuffix("_Weights").lower()

    def names(self) -> list[str]:
        from torchvision import models

        return [PREFIX + name for name in models.list_models(include="vit_*")]

    def load(self, name: str, checkpoint: Path | None) -> nn.Module:
        from torchvision import models

        known, _, tag = name.removeprefix(PREFIX).partition(".")
        choices: Any = models.get_model_weights(known)
        try:
            weights = choices[tag] if tag else choices.DEFAULT
        except KeyError:
            raise ModelError(
                f"{PREFIX}{known} has no weights {tag!r}; known: {', '.join(choices.__members__)}"
            ) from None
        if checkpoint is not None:
            state = read_state(checkpoint)
            classes = {"num_classes": len(state[HEAD])} if HEAD in state else {}
            return load_weights(models.get_model(known, weights=None, **classes), state, checkpoint, name)
        try:
            model = models.get_model(known, weights=weights)
        except Exception as error:  # hubs, proxies and disks fail in many ways; all of them mean "no weights"
            raise ModelError(
                f"the weights of {name} could not be loaded ({reason(error)}); offline, give a file with checkpoint="
            ) from error
        self._weights[model] = weights
        return model.eval()
