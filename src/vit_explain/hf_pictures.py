"""How pictures become pixels for models of Hugging Face's transformers: as files say, or as their kind is used to."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import nn

from .image import Preprocessing
from .structure import pair

HALF = (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# How pictures were prepared where no file says so: (mean, std), and how they are fitted.
CUSTOMS = {
    "deit": (IMAGENET, "center"),
    "vit_mae": (IMAGENET, "center"),
    "vit_msn": (IMAGENET, "center"),
    "dinov2": (IMAGENET, "center"),
    "dinov2_with_registers": (IMAGENET, "center"),
    "dinov3_vit": (IMAGENET, "squash"),
    "clip": (OPENAI, "center"),
    "clip_vision_model": (OPENAI, "center"),
    "detr": (IMAGENET, "squash"),
    "yolos": (IMAGENET, "squash"),
    "swin": (IMAGENET, "squash"),
    "swinv2": (IMAGENET, "squash"),
}
CUSTOM = ((HALF, HALF), "squash")


def processing(model: nn.Module, size: tuple[int, int]) -> Preprocessing:
    """As the image processor's files say that lie beside the model's weights; else as its kind is used to.

    ``size``: (h, w) of the input, where no file says more.
    """
    config: Any = model.config
    processor = _processor(config._name_or_path) if config._name_or_path else None
    if processor is None:
        (mean, std), mode = CUSTOMS.get(config.model_type, CUSTOM)
        return Preprocessing(size, mean, std, crop_mode=mode)
    return preprocessing_of(processor, size)


def _processor(source: str) -> dict[str, Any] | None:
    import transformers  # there, since the model is one of its

    try:
        return transformers.AutoImageProcessor.from_pretrained(source).to_dict()
    except (OSError, ValueError, ImportError):  # no such file, or none that this version knows
        return None


def preprocessing_of(processor: dict[str, Any], size: tuple[int, int]) -> Preprocessing:
    """A processor's fields in this package's words.

    Where an odd number of pixels is cut off, processors of transformers cut one less at the left and the top.
    """
    resized = _sides(processor.get("size")) if processor.get("do_resize", True) else ()
    cut = _sides(processor.get("crop_size")) if processor.get("do_center_crop", False) else ()
    mode = "squash" if len(resized) == 2 else "center"  # both sides, whatever the picture's shape, or the shorter one
    final = cut or (resized if len(resized) == 2 else size)
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if processor.get("do_normalize", True):
        mean, std = processor.get("image_mean") or HALF, processor.get("image_std") or HALF
    # Pixels are first multiplied by this; here they are always divided by 255.
    factor = 255 * (processor.get("rescale_factor") or 1 / 255) if processor.get("do_rescale", True) else 255.0
    resample = processor.get("resample")
    return Preprocessing(
        size=(final[0], final[-1]),
        mean=tuple(one / factor for one in mean),
        std=tuple(one / factor for one in std),
        interpolation="bicubic" if resample is None else Image.Resampling(int(resample)).name.lower(),
        # Where nothing is cut the model is given all; here it is the part that has the model's size.
        crop_pct=min(final) / resized[0] if len(resized) == 1 and not cut else 1.0,
        crop_mode=mode,
        resize=(resized[0], resized[-1]) if cut and resized else None,
    )


def _sides(size: Any) -> tuple[int, ...]:
    """(height, width), or the shorter side alone, or nothing."""
    if size is None:
        return ()
    if not isinstance(size, dict):
        return pair(size)
    if size.get("shortest_edge"):
        return (int(size["shortest_edge"]),)
    return (int(size["height"]), int(size["width"])) if size.get("height") else ()
