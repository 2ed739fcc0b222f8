"""Image-text models with prompts for classes: what looks at the picture is a model of some other family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from ..family import Family, family_of, register
from ..hf_pictures import OPENAI, processing
from ..huggingface import name_of, ours
from ..image import Preprocessing
from ..prompts import Prompted, compares
from ..structure import pair, part, replayed, within
from ..types import Anatomy, Attends

# Where the image model is: timm's inside open_clip's, open_clip's own, that of transformers.
TOWERS = ("visual.trunk", "visual", "vision_model")
RESIZE = {"shortest": "center", "longest": "border", "squash": "squash"}


@register
class PromptedImages:
    """``Prompted`` models; their scores are (B, prompts)."""

    title = "transformers CLIP and SigLIP and open_clip models, with texts"
    attends: Attends = "everywhere"

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, Prompted)

    def refuses(self, model: nn.Module) -> str | None:
        if not compares(model):
            return None
        return f'{type(model).__name__} compares pictures with texts: give texts=["a photo of a ..."] (--text)'

    def _tower(self, model: Any) -> tuple[str, nn.Module, Family]:
        path, tower = part(model.model, TOWERS)
        return f"model.{path}", tower, family_of(tower)

    def anatomy(self, model: nn.Module, shape: tuple[int, int, int]) -> Anatomy:
        path, tower, family = self._tower(model)
        return within(family.anatomy(tower, shape), path)

    def classes(self, model: Any) -> int:
        return len(model.prompts)

    def logits(self, output: Any) -> Tensor:
        return output

    def lens(self, model: nn.Module, tokens: Tensor) -> Any:
        shape = (3, *self.preprocessing(model).size)
        return replayed(model, self.anatomy(model, shape).blocks[-1], shape, tokens)

    def projection(self, model: nn.Module, block: int) -> Tensor:
        _, tower, family = self._tower(model)
        return family.projection(tower, block)

    def preprocessing(self, model: Any) -> Preprocessing:
        _, tower, family = self._tower(model)
        if ours(model.model):
            return processing(model.model, family.preprocessing(tower).size)
        known = getattr(model.model.visual, "preprocess_cfg", {})
        mean, std = OPENAI
        return Preprocessing(
            size=pair(known.get("size", model.model.visual.image_size)),
            mean=tuple(known.get("mean", mean)),
            std=tuple(known.get("std", std)),
            interpolation=known.get("interpolation", "bicubic"),
            crop_mode=RESIZE[known.get("resize_mode", "shortest")],
        )

    def labels(self, model: Any) -> list[str] | None:
        return list(model.prompts)

    def name(self, model: Any) -> str:
        return name_of(model.model) if ours(model.model) else type(model.model).__name__

    def names(self) -> list[str]:
        return []

    def load(self, name: str, checkpoint: Path | None) -> nn.Module:
        raise ModelError(f"{name}: an image-text model is loaded first, and its prompts are added then")
