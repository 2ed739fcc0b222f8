"""Mosaics: pictures of one class each, side by side, so that the place of each class is known by construction."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def composed(pictures: Sequence[Tensor], side: int) -> Tensor:
    """``side²`` pictures (C, H, W) as one of their size, row by row, each made smaller by averaging."""
    height, width = pictures[0].shape[1:]
    whole = torch.zeros_like(pictures[0])
    for number, picture in enumerate(pictures):
        top, left, bottom, right = cell(number, side, (height, width))
        whole[:, top:bottom, left:right] = F.interpolate(
            picture[None], (bottom - top, right - left), mode="bilinear", antialias=True, align_corners=False
        )[0]
    return whole


def cell(number: int, side: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of a cell of a mosaic of this size."""
    row, column = divmod(number, side)
    (top, bottom), (left, right) = (
        (i * length // side, (i + 1) * length // side) for i, length in zip((row, column), size, strict=True)
    )
    return top, left, bottom, right


def grouped(confident: Mapping[str, int], cells: int) -> list[list[str]]:
    """Names of images, by their classes, in groups of so many different classes; no image twice, some not at all."""
    waiting: dict[int, deque[str]] = defaultdict(deque)
    for name, number in confident.items():
        waiting[number].append(name)
    groups = []
    while sum(bool(names) for names in waiting.values()) >= cells:
        fullest = sorted(waiting, key=lambda number: (-len(waiting[number]), number))[:cells]
        groups.append([waiting[number].popleft() for number in fullest])
    return groups
