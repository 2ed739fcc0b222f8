"""Stand-ins for classes that torch.hub repositories bring along: the same parts by the same names, written anew."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Module):
    def __init__(self, side: int, patch: int, width: int) -> None:
        super().__init__()
        self.img_size, self.patch_size, self.num_patches = side, patch, (side // patch) ** 2
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).mT


class Attention(nn.Module):
    """Softmax spelt out; ``tells``: the weights are returned beside the result, as DINO has it."""

    def __init__(self, width: int, heads: int, tells: bool) -> None:
        super().__init__()
        self.heads, self.tells = heads, tells
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn_drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = self.attn_drop((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1))
        out = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return (out, weights) if self.tells else out


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, heads: int, tells: bool, scaled: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, tells)
        self.ls1 = Scale(width) if scaled else nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        found = self.attn(self.norm1(x))
        x = x + self.ls1(found[0] if isinstance(found, tuple) else found)
        return x + self.mlp(self.norm2(x))


class Chunk(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = block(x)
        return x


class Hub(nn.Module):
    """``registers``: tokens after the class token; ``chunked``: blocks in two lists, the second filled up in front."""

    def __init__(
        self,
        *,
        side: int = 40,
        patch: int = 8,
        width: int = 24,
        heads: int = 3,
        depth: int = 3,
        classes: int = 0,
        registers: int = 0,
        chunked: bool = False,
        tells: bool = False,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.patch_embed = Embedding(side, patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, width))
        blocks: list[nn.Module] = [Block(width, heads, tells, scaled) for _ in range(depth)]
        if chunked:
            blocks = [Chunk(blocks[:2]), Chunk([nn.Identity(), nn.Identity(), *blocks[2:]])]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes) if classes else nn.Identity()

    def interpolate_pos_encoding(self, height: int, width: int) -> Tensor:
        side = round(self.patch_embed.num_patches**0.5)
        patch = self.patch_embed.patch_size
        places = self.pos_embed[:, 1:].mT.unflatten(2, (side, side))
        places = F.interpolate(places, (height // patch, width // patch), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], places.flatten(2).mT], 1)

    def tokens(self, x: Tensor) -> Tensor:
        found = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], 1)
        found = found + self.interpolate_pos_encoding(x.shape[2], x.shape[3])
        if self.register_tokens is not None:
            registers = self.register_tokens.expand(len(x), -1, -1)
            found = torch.cat([found[:, :1], registers, found[:, 1:]], 1)
        for block in self.blocks:
            found = block(found)
        return self.norm(found)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(x)[:, 0])


class LinearClassifier(nn.Module):
    """The class token and the mean of the patches side by side, read by one linear layer."""

    def __init__(self, backbone: Hub, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.linear_head = nn.Linear(2 * backbone.norm.normalized_shape[0], classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.backbone.tokens(x)
        registers = self.backbone.register_tokens
        first = 1 if registers is None else 1 + registers.shape[1]
        return self.linear_head(torch.cat([tokens[:, 0], tokens[:, first:].mean(1)], 1))
