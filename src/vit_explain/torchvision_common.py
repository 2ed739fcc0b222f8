"""What torchvision's models have in common: names, weights, preprocessing, class names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from .errors import ModelError, reason
from .image import Preprocessing
from .weights import load_weights, read_state

PREFIX = "torchvision/"
SUPPORTED = "torchvision vit_* and swin_*"


class Torchvision(ABC):
    """The answers of a family of torchvision's models that do not depend on its blocks."""

    kind: tuple[str, str] = ("", "")  # file of torchvision.models, and the class in it
    pattern: str = ""  # of its names
    head: str = ""  # name of the last layer's weights

    def __init__(self) -> None:
        # A model does not say which of its architecture's weights it has.
        self._weights: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()

    @abstractmethod
    def first_weights(self, model: Any) -> Any:
        """torchvision's own first weights of the model's architecture, for models with others."""

    @abstractmethod
    def input_size(self, model: Any, preset: Any) -> tuple[int, int]:
        """Pixels (height, width) that the model takes, where ``preset`` is the transform of its weights."""

    @abstractmethod
    def classes(self, model: Any) -> int:
        """As ``family.Family`` has it."""

    def matches(self, model: nn.Module) -> bool:
        file, name = self.kind
        return any(
            kind.__module__ == f"torchvision.models.{file}" and kind.__name__ == name for kind in type(model).__mro__
        )

    def refuses(self, model: nn.Module) -> str | None:
        if not type(model).__module__.startswith("torchvision."):
            return None
        return f"torchvision's {type(model).__name__} is not supported; supported: {SUPPORTED}"

    def logits(self, output: Any) -> Tensor:
        return output

    def preprocessing(self, model: Any) -> Preprocessing:
        preset = self._known(model).transforms()
        size = self.input_size(model, preset)
        cut, resized = preset.crop_size[0], preset.resize_size[0]
        return Preprocessing(
            size=size,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=preset.interpolation.value,
            resize=(size[0] * resized // cut, size[1] * resized // cut),
        )

    def _known(self, model: Any) -> Any:
        return self._weights.get(model) or self.first_weights(model)

    def labels(self, model: Any) -> list[str] | None:
        known = self._known(model).meta["categories"]
        return list(known) if len(known) == self.classes(model) else None

    def name(self, model: Any) -> str:
        weights = self._weights.get(model)
        if weights is None:
            return type(model).__name__
        # ViT_B_16_Weights.IMAGENET1K_V1 are weights of vit_b_16.
        return PREFIX + type(weights).__name__.removesuffix("_Weights").lower()

    def names(self) -> list[str]:
        from torchvision import models

        return [PREFIX + name for name in models.list_models(include=self.pattern)]

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
            classes = {"num_classes": len(state[self.head])} if self.head in state else {}
            return load_weights(models.get_model(known, weights=None, **classes), state, checkpoint, name)
        try:
            model = models.get_model(known, weights=weights)
        except Exception as error:  # hubs, proxies and disks fail in many ways; all of them mean "no weights"
            raise ModelError(
                f"the weights of {name} could not be loaded ({reason(error)}); offline, give a file with checkpoint="
            ) from error
        self._weights[model] = weights
        return model.eval()
