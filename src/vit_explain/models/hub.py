"""Classes of torch.hub repositories handed over as objects: DINO, DINOv2, DeiT, and others that are built alike.

Their code is in no package, so they are recognised by their parts, and what their head reads is asked of the head.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..compiled import as_written
from ..errors import ModelError
from ..family import register
from ..hf_pictures import IMAGENET
from ..image import Preprocessing
from ..modules import evaluation_mode
from ..structure import anatomy_of, check_size, output_projection, pair, part, replayed
from ..surroundings import callers
from ..types import Anatomy, Attends, Readout

PARTS = ("patch_embed.proj", "cls_token", "pos_embed", "blocks")
BACKBONE = "backbone"  # where a linear classifier keeps it


@register
class TorchHubViT:
    """A class token, then registers or a distillation token if there are any, then patches."""

    title = "DINO, DINOv2 and DeiT classes of torch.hub, and others with patch_embed, cls_token, pos_embed and blocks"
    attends: Attends = "everywhere"

    def __init__(self) -> None:
        self._readouts: WeakKeyDictionary[nn.Module, Readout] = WeakKeyDictionary()

    def matches(self, model: nn.Module) -> bool:
        return _backbone(model)[1] is not None

    def refuses(self, model: nn.Module) -> str | None:
        return None

    def anatomy(self, model: nn.Module, shape: tuple[int, int, int]) -> Anatomy:
        path, inner = _backbone(model)
        patch, size = _patch(inner), pair(inner.patch_embed.img_size)
        fixed = not hasattr(inner, "interpolate_pos_encoding")
        check_size(self.name(model), shape, inner.patch_embed.proj.in_channels, size if fixed else None)
        self._check_kernels(inner)
        grid = (shape[1] // patch[0], shape[2] // patch[1])
        if 0 in grid:
            raise ModelError(f"{self.name(model)} has patches of {patch[0]}x{patch[1]} pixels: {shape[1:]} has none")
        if model not in self._readouts:
            self._readouts[model] = self._asked(model)
        return anatomy_of(model, _blocks(path, inner), grid, patch, _prefix(inner), self._readouts[model])

    def _check_kernels(self, inner: Any) -> None:
        code = sys.modules.get(type(part(inner.blocks[-1], ("attn",))[1]).__module__)
        if getattr(code, "XFORMERS_AVAILABLE", False):
            raise ModelError(
                f"{type(inner).__name__} computes attention with xformers, which cannot be seen: set the environment "
                "variable XFORMERS_DISABLED=1 before its code is imported"
            )

    def _asked(self, model: nn.Module) -> Readout:
        """Which tokens the output depends on, by its derivative at the tokens that leave the last block."""
        _, inner = _backbone(model)
        prefix, shape, width = _prefix(inner), self._shape(inner), inner.cls_token.shape[2]
        if getattr(_head(model), "in_features", 0) > 2 * width:
            raise ModelError(
                f"{type(model).__name__} reads tokens of several blocks, which no row of weights describes; "
                "build the classifier with layers=1"
            )
        grid = [side // patch for side, patch in zip(shape[1:], _patch(inner), strict=True)]
        generator = torch.Generator().manual_seed(0)
        with (
            evaluation_mode(model) as modules,
            as_written(modules),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            drawn = torch.randn(1, prefix + grid[0] * grid[1], width, generator=generator)
            tokens = drawn.to(inner.cls_token.device).requires_grad_()
            with callers():
                output = self.logits(self.lens(model, tokens))
            # A plain sum of what a norm puts out is the same whatever goes in.
            weights = torch.randn(output.shape, generator=generator).to(output)
            (gradient,) = torch.autograd.grad((output * weights).sum(), tokens)
        read = gradient[0].abs().sum(1) > 0
        ahead = tuple(int(token) for token in read[:prefix].nonzero())
        patches = bool(read[prefix:].any())
        if patches and not read[prefix:].all():
            raise ModelError(f"{self.name(model)} reads some of its patches and not others")
        return Readout(tokens=ahead, patches=patches, beside=patches and bool(ahead))

    def _shape(self, inner: Any) -> tuple[int, int, int]:
        return inner.patch_embed.proj.in_channels, *pair(inner.patch_embed.img_size)

    def lens(self, model: nn.Module, tokens: Tensor) -> Any:
        path, inner = _backbone(model)
        return replayed(model, _blocks(path, inner)[-1], self._shape(inner), tokens)

    def projection(self, model: nn.Module, block: int) -> Tensor:
        path, inner = _backbone(model)
        return output_projection(model.get_submodule(_blocks(path, inner)[block]))

    def classes(self, model: nn.Module) -> int:
        return getattr(_head(model), "out_features", 0)

    def logits(self, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 2:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(f"the model returned {shape}, not (B, classes) scores")
        return output

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        return Preprocessing(pair(_backbone(model)[1].patch_embed.img_size), *IMAGENET)

    def labels(self, model: nn.Module) -> list[str] | None:
        return None

    def name(self, model: nn.Module) -> str:
        return type(_backbone(model)[1]).__name__

    def names(self) -> list[str]:
        return []

    def load(self, name: str, checkpoint: Path | None) -> nn.Module:
        raise ModelError(f"{name}: models of torch.hub are loaded by torch.hub.load and handed over")


def _backbone(model: nn.Module) -> tuple[str, Any]:
    """Path and module of what has blocks: the model itself, or what a linear classifier stands on; else '', None."""
    candidates: list[tuple[str, Any]] = [("", model), (f"{BACKBONE}.", getattr(model, BACKBONE, None))]
    for path, inner in candidates:
        if all(part(inner, [name])[0] for name in PARTS) and isinstance(inner.blocks, (nn.ModuleList, nn.Sequential)):
            return ("", None) if _timms_own(inner) else (path, inner)
    return "", None


def _head(model: nn.Module) -> Any:
    return part(model, ("linear_head", "head"))[1]


def _timms_own(model: Any) -> bool:
    """Whether timm's classes answer for it; not where a subclass adds tokens, or reads them, in ways of its own."""
    if not any(kind.__module__.startswith("timm.models.") for kind in type(model).__mro__):
        return False
    added = getattr(model, "dist_token", None) is not None and getattr(model, "num_prefix_tokens", 1) == 1
    return not added and not isinstance(getattr(model, "global_pool", ""), bool)


def _patch(inner: Any) -> tuple[int, int]:
    return pair(inner.patch_embed.patch_size)


def _prefix(inner: Any) -> int:
    registers = getattr(inner, "register_tokens", None)
    distilled = getattr(inner, "dist_token", None) is not None
    return 1 + distilled + (0 if registers is None else registers.shape[1])


def _blocks(path: str, inner: nn.Module) -> list[str]:
    """Names of the blocks, which may lie in chunks that are filled up with modules that do nothing."""
    names = [name for name, block in inner.named_modules() if name.startswith("blocks.") and hasattr(block, "attn")]
    return [f"{path}{name}" for name in names]
