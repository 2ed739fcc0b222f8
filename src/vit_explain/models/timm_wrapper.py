"""timm models inside transformers' TimmWrapper: the timm family answers for what is inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from ..family import Family, family_of, register
from ..huggingface import labels_of, name_of, ours, scores_of
from ..image import Preprocessing
from ..structure import replayed, within
from ..types import Anatomy, Attends

INNER = "timm_model"


@register
class TimmWrapper:
    """TimmWrapperModel and TimmWrapperForImageClassification, where timm's own model is supported."""

    title = "transformers TimmWrapper of any of timm's models above"
    attends: Attends = "everywhere"

    def matches(self, model: nn.Module) -> bool:
        return ours(model) and hasattr(model, INNER)

    def refuses(self, model: nn.Module) -> str | None:
        return None

    def _inside(self, model: Any) -> tuple[Family, nn.Module]:
        return family_of(model.timm_model), model.timm_model

    def anatomy(self, model: nn.Module, shape: tuple[int, int, int]) -> Anatomy:
        family, inner = self._inside(model)
        return within(family.anatomy(inner, shape), INNER)

    def classes(self, model: nn.Module) -> int:
        family, inner = self._inside(model)
        return family.classes(inner)

    def logits(self, output: Any) -> Tensor:
        return scores_of(output)

    def lens(self, model: nn.Module, tokens: Tensor) -> Any:
        shape = (3, *self.preprocessing(model).size)
        return replayed(model, self.anatomy(model, shape).blocks[-1], shape, tokens)

    def projection(self, model: nn.Module, block: int) -> Tensor:
        family, inner = self._inside(model)
        return family.projection(inner, block)

    def preprocessing(self, model: Any) -> Preprocessing:
        family, inner = self._inside(model)
        own, given = family.preprocessing(inner), getattr(model.config, "pretrained_cfg", None) or {}
        return Preprocessing(
            size=own.size,
            mean=tuple(given.get("mean", own.mean)),
            std=tuple(given.get("std", own.std)),
            interpolation=given.get("interpolation", own.interpolation),
            crop_pct=given.get("crop_pct", own.crop_pct),
            crop_mode=given.get("crop_mode", own.crop_mode),
        )

    def labels(self, model: nn.Module) -> list[str] | None:
        family, inner = self._inside(model)
        return labels_of(model, self.classes(model)) or family.labels(inner)

    def name(self, model: nn.Module) -> str:
        return name_of(model)

    def names(self) -> list[str]:
        return []

    def load(self, name: str, checkpoint: Path | None) -> nn.Module:
        raise ModelError(f"{name}: models of this family are loaded as those of transformers are")
