"""Small models with attention that is not uniform, and attention read off them in another way than the package's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

GRID, PATCH, CLASSES = (3, 5), 8, 4
SIZE = (GRID[0] * PATCH, GRID[1] * PATCH)
SMALL: dict[str, Any] = {
    "img_size": SIZE,
    "patch_size": PATCH,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 3,
    "num_classes": CLASSES,
}


def lively(model: nn.Module) -> nn.Module:
    """Weights large enough that heads differ, attention is peaked and gradients are of both signs."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma" in name or "lambda" in name:
                parameter.fill_(0.5)
            elif parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.35)
            elif not any(word in name for word in ("norm", "ln_", ".ln.")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


# One entry a kind of anatomy. A new family adds its small models here and is in every conformance test.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "class token": lambda: VisionTransformer(**SMALL),
    "distilled": lambda: VisionTransformerDistilled(**SMALL),
    "registers": lambda: VisionTransformer(**SMALL, reg_tokens=4, no_embed_class=True, init_values=1e-5),
    "mean pooling": lambda: VisionTransformer(**SMALL, class_token=False, global_pool="avg"),
    "mean pooling beside a class token": lambda: VisionTransformer(**SMALL, global_pool="avg"),
    "attention pooling": lambda: VisionTransformer(**SMALL, class_token=False, global_pool="map"),
    "attention pooling beside a class token": lambda: VisionTransformer(
        **SMALL, global_pool="map", pool_include_prefix=False
    ),
    "qk norm": lambda: VisionTransformer(**SMALL, qk_norm=True),
    "eva with rotary positions": lambda: Eva(**SMALL, use_rot_pos_emb=True, num_reg_tokens=2),
    "beit with relative position bias": lambda: Beit(**SMALL, use_abs_pos_emb=False, use_rel_pos_bias=True),
    "dynamic size": lambda: VisionTransformer(**SMALL, dynamic_img_size=True),
}


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    return lively(MODELS[name]())


def unfused_attention(model: Any, pixels: Tensor, target: int) -> tuple[list[Tensor], list[Tensor]]:
    """(A, ∂logit/∂A) of every block by PyTorch's own bookkeeping: unfused path, dropout hooks, retained gradients."""
    seen: list[Tensor] = []

    def see(_module: nn.Module, _inputs: object, out: Tensor) -> None:
        out.retain_grad()
        seen.append(out)

    hooks = [block.attn.attn_drop.register_forward_hook(see) for block in model.blocks]
    fused = [block.attn.fused_attn for block in model.blocks]
    try:
        for block in model.blocks:
            block.attn.fused_attn = False
        with torch.enable_grad():
            model(pixels)[:, target].sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
        for block, flag in zip(model.blocks, fused, strict=True):
            block.attn.fused_attn = flag
        model.zero_grad()
    return [a.detach() for a in seen], [a.grad for a in seen if a.grad is not None]


def planted(patch: int, block: int = 0) -> nn.Module:
    """A ViT built by hand whose class 1 is how bright one patch is, and nothing else; the other channels are noise.

    ``block``: in which of the two the class token reads the patch.
    """
    model = VisionTransformer(**{**SMALL, "embed_dim": 32, "num_heads": 1, "depth": 2}, norm_layer=nn.Identity).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        weight = model.patch_embed.proj.weight
        weight[2:31] = torch.randn(weight[2:31].shape, generator=torch.Generator().manual_seed(0)) * 0.1
        weight[0] = 1 / (3 * PATCH * PATCH)  # channel 0: brightness
        model.pos_embed[0, 1 + patch, 31] = 1.0  # channel 31: the patch
        attention = model.blocks[block].attn
        attention.qkv.bias[0] = 8.0  # every query asks for channel 31,
        attention.qkv.weight[32, 31] = 8.0  # keys answer with it,
        attention.qkv.weight[64, 0] = 1.0  # values carry brightness
        attention.proj.weight[1, 0] = 1.0  # to channel 1,
        model.head.weight[1, 1] = 4.0  # which is class 1;
        model.head.bias[0] = 2.0  # without light it is class 0
    return model


def planted_picture(patch: int) -> Tensor:
    """(1, 3, H, W) noise with light on one patch."""
    picture = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(patch)) * 0.3
    row, column = divmod(patch, GRID[1])
    picture[..., row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] += 1
    return picture


class Memory:
    """Of a device that holds so many rows of a block's input, and runs out at more."""

    def __init__(self, monkeypatch: Any, model: Any, most: int) -> None:
        self.most, self.sizes = most, list[int]()
        kind, memory = type(model.blocks[0]), self
        plain = kind.forward

        def limited(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            memory.sizes.append(len(x))
            if len(x) > memory.most:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return plain(block, x, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", limited)
