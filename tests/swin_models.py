"""Small Swin Transformers of transformers and torchvision, and where their windows lie, found out in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES, DEPTHS, HEADS, WIDTH, WINDOW, PATCH = 4, (2, 2), (2, 3), 12, 2, 4


def transformers(version: str, attention: str) -> Callable[[tuple[int, int]], nn.Module]:
    """``version``: "" or "v2"."""

    def build(size: tuple[int, int]) -> nn.Module:
        library = pytest.importorskip("transformers")
        config = getattr(library, f"Swin{version}Config")(
            image_size=list(size), patch_size=PATCH, window_size=WINDOW, embed_dim=WIDTH, depths=list(DEPTHS),
            num_heads=list(HEADS), num_labels=CLASSES, drop_path_rate=0.0,
        )  # fmt: skip
        config._attn_implementation = attention
        kind = getattr(library, f"Swin{version}ForImageClassification")
        if attention == "sdpa" and not kind._supports_sdpa:
            pytest.skip("before version 5 of transformers, Swin spells attention out")
        return kind(config)

    return build


def torchvision(version: str) -> Callable[[tuple[int, int]], nn.Module]:
    def build(size: tuple[int, int]) -> nn.Module:
        code = pytest.importorskip("torchvision").models.swin_transformer
        second = {"block": code.SwinTransformerBlockV2, "downsample_layer": code.PatchMergingV2} if version else {}
        return code.SwinTransformer(
            [PATCH, PATCH], WIDTH, list(DEPTHS), list(HEADS), [WINDOW, WINDOW], num_classes=CLASSES, **second
        )

    return build


SWINS: dict[str, Callable[[tuple[int, int]], nn.Module]] = {
    "transformers swin": transformers("", "sdpa"),
    "transformers swin, eager": transformers("", "eager"),
    "transformers swin v2": transformers("v2", "eager"),
    "torchvision swin": torchvision(""),
    "torchvision swin v2": torchvision("v2"),
}


def calm(model: nn.Module) -> nn.Module:
    """With blocks that add little: those of the second version otherwise add as much as there is, by their norms."""
    for name, part in model.named_modules():
        if isinstance(part, nn.LayerNorm) and name.rsplit(".", 1)[-1] in (
            "layernorm_before",
            "layernorm_after",
            "norm1",
            "norm2",
        ):
            nn.init.constant_(part.weight, 0.1)
    return model.eval()


def windows_of(grid: tuple[int, int], shift: int) -> list[list[int]]:
    """The tokens of each window, row by row; those of padding, behind the grid's right and lower border, are the last.

    In each window of the rolled grid, place (r, c) holds what was at (r + shift, c + shift), around the border.
    """
    h, w = (-(-side // WINDOW) * WINDOW for side in grid)
    found = []
    for top in range(0, h, WINDOW):
        for left in range(0, w, WINDOW):
            places = [((top + r + shift) % h, (left + c + shift) % w) for r in range(WINDOW) for c in range(WINDOW)]
            found.append([r * grid[1] + c if r < grid[0] and c < grid[1] else grid[0] * grid[1] for r, c in places])
    return found


def shifts(grid: tuple[int, int]) -> list[int]:
    """Of the blocks of a stage: every second one shifts by half a window, where there is more than one window."""
    return [0 if number % 2 == 0 or min(grid) <= WINDOW else WINDOW // 2 for number in range(DEPTHS[0])]


def merging(grid: tuple[int, int]) -> Tensor:
    """(coarse, fine): means over 2×2 tokens, at the border over those that are there."""
    images = torch.eye(grid[0] * grid[1]).view(-1, 1, *grid)
    return F.avg_pool2d(images, 2, ceil_mode=True, count_include_pad=False).flatten(1).T


def stages(grid: tuple[int, int]) -> list[tuple[tuple[int, int], Tensor | None]]:
    """Each stage's grid and the merging before it."""
    return [(grid, None), ((-(-grid[0] // 2), -(-grid[1] // 2)), merging(grid))]


def full_matrices(attention: list[Tensor], grid: tuple[int, int]) -> list[tuple[Tensor, Tensor | None]]:
    """Of one image, each call's (W, H, n, n) as one matrix (tokens, tokens + 1), the last column what padding gets;
    and the merging below it. Mean over heads."""
    found: list[tuple[Tensor, Tensor | None]] = []
    calls = iter(attention)
    for size, merge in stages(grid):
        tokens = size[0] * size[1]
        for shift in shifts(size):
            full = torch.zeros(tokens + 1, tokens + 1)
            for window, heads in zip(windows_of(size, shift), next(calls), strict=True):
                mean: Any = heads.mean(0)
                for i, query in enumerate(window):
                    for j, key in enumerate(window):
                        full[query, key] += mean[i, j]
            found.append((full[:-1], merge))
            merge = None
    assert next(calls, None) is None
    return found
