"""Plain image models of Hugging Face's transformers: ViT, DeiT, BEiT, DINOv2, DINOv3, CLIP, SigLIP and their kin.

transformers is only imported to load a model; a model that is handed over has imported it already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from ..family import register
from ..huggingface import PREFIX, HuggingFace, head_of, type_of, vision_of
from ..structure import anatomy_of, check_size, output_projection, pair, replayed
from ..types import Anatomy, Attends, Readout

CLASS, PATCHES, POOL = Readout(tokens=(0,)), Readout(patches=True), Readout(attention=True)
BESIDE = Readout(tokens=(0,), patches=True, beside=True)


@dataclass(frozen=True)
class Kind:
    """What is particular about a type of model; functions take its configuration.

    ``classifier``, ``base``: how a classifier reads the last tokens, and how the vector is read that a model without
    one pools. ``fixed``: whether it takes pictures of its configured size alone. ``biased``: what gives positions to
    attention instead of tokens, if anything does.
    """

    prefix: Callable[[Any], int] = lambda config: 1
    classifier: Callable[[Any], Readout] = lambda config: CLASS
    base: Callable[[Any], Readout] = lambda config: CLASS
    fixed: bool = True
    biased: Callable[[Any], str] = lambda config: ""


def _registers(config: Any) -> int:
    return 1 + config.num_register_tokens


def _beit_readout(config: Any) -> Readout:
    return PATCHES if config.use_mean_pooling else CLASS


def _beit_bias(config: Any) -> str:
    shared = config.use_relative_position_bias or config.use_shared_relative_position_bias
    return "relative bias" if shared else ""


def _siglip_readout(config: Any) -> Readout:
    return POOL if getattr(config, "vision_use_head", True) else PATCHES


BEIT = Kind(classifier=_beit_readout, base=_beit_readout, biased=_beit_bias)
CLIP = Kind(classifier=lambda config: PATCHES)
SIGLIP = Kind(prefix=lambda config: 0, classifier=lambda config: PATCHES, base=_siglip_readout)
KINDS = {
    "vit": Kind(),
    "vit_mae": Kind(),  # a ViT with weights of ViT-MAE keeps that name in its configuration
    "deit": Kind(prefix=lambda config: 2),
    "vit_msn": Kind(),
    "beit": BEIT,
    "data2vec-vision": BEIT,
    "dinov2": Kind(classifier=lambda config: BESIDE, fixed=False),
    "dinov2_with_registers": Kind(prefix=_registers, classifier=lambda config: BESIDE, fixed=False),
    "dinov3_vit": Kind(prefix=_registers, fixed=False, biased=lambda config: "rotary"),
    "ijepa": Kind(prefix=lambda config: 0, classifier=lambda config: PATCHES, base=lambda config: PATCHES),
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
}


@register
class HuggingFaceViT(HuggingFace):
    """Models that one entry of ``KINDS`` describes."""

    title = "transformers ViT, DeiT, ViT-MSN, BEiT, Data2Vec, DINOv2, DINOv3, I-JEPA, CLIP and SigLIP image models"
    attends: Attends = "everywhere"

    def matches(self, model: nn.Module) -> bool:
        return type_of(model) in KINDS

    def names(self) -> list[str]:
        return [f"{PREFIX}*"]

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        kind, config = _kind(model), vision_of(model)
        self.check_visible(model)
        size, patch = pair(config.image_size), pair(config.patch_size)
        check_size(self.name(model), shape, config.num_channels, size if kind.fixed else None)
        grid = (shape[1] // patch[0], shape[2] // patch[1])
        if 0 in grid:
            raise ModelError(f"{self.name(model)} has patches of {patch[0]}x{patch[1]} pixels: {shape[1:]} has none")
        biased = kind.biased(config)
        pooled = kind.base(config).attention
        return anatomy_of(
            model,
            _blocks(model),
            grid,
            patch,
            kind.prefix(config),
            _readout(model),
            undroppable=f"{self.name(model)} gives positions to attention ({biased}), not to tokens"
            if biased
            else None,
            # A classifier's encoder pools too, for nobody.
            unread=int(pooled and not _readout(model).attention),
            remembers=True,  # of positions, in caches of functions
        )

    def lens(self, model: Any, tokens: Tensor) -> Any:
        config = vision_of(model)
        size = pair(config.image_size if _kind(model).fixed else config.patch_size)
        return replayed(model, _blocks(model)[-1], (config.num_channels, *size), tokens)

    def projection(self, model: Any, block: int) -> Tensor:
        return output_projection(model.get_submodule(_blocks(model)[block]))


def _kind(model: Any) -> Kind:
    return KINDS[model.config.model_type]


def _readout(model: Any) -> Readout:
    config = vision_of(model)
    if hasattr(model, "distillation_classifier"):
        return Readout(tokens=(0, 1))  # the mean of the class head and the distillation head
    return _kind(model).base(config) if head_of(model) is None else _kind(model).classifier(config)


def _blocks(model: Any) -> list[str]:
    """Names of the blocks: the list of as many modules as the configuration has layers, wherever a version keeps it."""
    number = vision_of(model).num_hidden_layers
    path = next(
        path for path, inner in model.named_modules() if isinstance(inner, nn.ModuleList) and len(inner) == number
    )
    return [f"{path}.{place}" for place in range(number)]
