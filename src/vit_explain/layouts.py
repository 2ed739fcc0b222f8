"""Index arithmetic for ``Placement``: grids of token numbers cut into windows, and averaged into coarser grids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .layer import Placement
from .types import Anatomy, Plan, Readout

Grid = tuple[int, int]


def numbered(grid: Grid) -> Tensor:
    """(h, w): the number of each token, row by row."""
    return torch.arange(grid[0] * grid[1]).view(grid)


def halved(grid: Grid) -> Grid:
    """How large a grid is of which every second row and column is left, the first ones included."""
    return (grid[0] + 1) // 2, (grid[1] + 1) // 2


def convolved(grid: Grid, convolution: Any) -> Grid:
    """How large a grid is after this ``nn.Conv2d``."""
    kernels, steps, paddings = convolution.kernel_size, convolution.stride, convolution.padding
    h, w = (
        (side + 2 * padding - kernel) // step + 1
        for side, kernel, step, padding in zip(grid, kernels, steps, paddings, strict=True)
    )
    return h, w


def blocks(tokens: Tensor, size: Grid, padding: int) -> Tensor:
    """(h, w) numbers -> (W, n): blocks of neighbours, row by row. Where ``size`` does not divide the grid it is padded
    at its right and lower border."""
    tokens = _padded(tokens, size, padding)
    h, w = tokens.shape
    parted = tokens.view(h // size[0], size[0], w // size[1], size[1])
    return parted.transpose(1, 2).reshape(-1, size[0] * size[1])


def strides(tokens: Tensor, size: Grid) -> Tensor:
    """(h, w) numbers -> (W, n): each window holds tokens that lie equally far apart over the whole grid (MaxViT)."""
    h, w = tokens.shape
    parted = tokens.view(size[0], h // size[0], size[1], w // size[1])
    return parted.permute(1, 3, 0, 2).reshape(-1, size[0] * size[1])


def coarser(fine: Grid, coarse: Grid, prefix: int = 0) -> Tensor:
    """For each token of a fine grid the token of a coarse one that it is averaged into; prefix tokens stay themselves.

    Cell (r, c) gathers rows ``r h/h'`` to ``(r + 1) h/h'``, and columns likewise: what a convolution with as large a
    kernel as stride reads. Overlapping kernels read a token or so more on each side, which is left out of account.
    """
    rows = (torch.arange(fine[0]) * coarse[0]).div(fine[0], rounding_mode="floor")
    columns = (torch.arange(fine[1]) * coarse[1]).div(fine[1], rounding_mode="floor")
    cells = rows[:, None] * coarse[1] + columns[None, :]
    return torch.cat([torch.arange(prefix), prefix + cells.flatten()])


def overlaps(
    parts: Grid, cells: Grid, begin: tuple[float, float] = (0.0, 0.0), extent: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """(parts, cells): the share of each part's area that lies in each cell, of two grids over one picture.

    ``begin``, ``extent``: where the grid of parts begins and how far it reaches, as shares of the picture's sides.
    """
    shares = []
    for number, (few, many) in enumerate(zip(parts, cells, strict=True)):
        edges = begin[number] + extent[number] * torch.arange(few + 1, dtype=torch.float64) / few
        bounds = torch.arange(many + 1, dtype=torch.float64) / many
        common = torch.minimum(edges[1:, None], bounds[1:]) - torch.maximum(edges[:-1, None], bounds[:-1])
        shares.append(common.clamp_min(0) * few / extent[number])
    return torch.kron(shares[0], shares[1]).float()


def in_windows(windows: Tensor, tokens: int, merged: Tensor | None = None, *, windows_first: bool = False) -> Placement:
    """Self-attention inside windows (W, n) of so many tokens."""
    return Placement(windows, windows, tokens, tokens, merged=merged, windows_first=windows_first)


def shifted(grid: Grid, window: Grid, shift: Grid, merged: Tensor | None = None, *, padded: bool = False) -> Placement:
    """Self-attention inside windows of a grid that was rolled up and to the left by ``shift`` before it was cut.

    ``padded``: where windows do not divide the grid, whether it was padded before it was rolled, and not after.
    """
    tokens = grid[0] * grid[1]
    numbers = _padded(numbered(grid), window, tokens) if padded else numbered(grid)
    rolled = numbers.roll((-shift[0], -shift[1]), (0, 1))
    return in_windows(blocks(rolled, window, padding=tokens), tokens, merged)


def merged_by_two(finer: Grid) -> tuple[Grid, Tensor]:
    """The grid of 2×2 tokens merged into one each, and which one each token is merged into; an odd grid is padded."""
    grid = halved(finer)
    even = (2 * grid[0], 2 * grid[1])
    return grid, coarser(even, grid).view(even)[: finer[0], : finer[1]].flatten()


def whole(tokens: int, merged: Tensor | None = None) -> Placement:
    """Self-attention of all tokens."""
    return in_windows(torch.arange(tokens)[None], tokens, merged)


def to_reduced(grid: Grid, reduced: Grid, merged: Tensor | None = None) -> Placement:
    """All tokens ask, and means over the cells of a coarser grid answer."""
    tokens, cells = grid[0] * grid[1], reduced[0] * reduced[1]
    pooled = coarser(grid, reduced)
    return Placement(torch.arange(tokens)[None], torch.arange(cells)[None], tokens, tokens, pooled, merged=merged)


def from_class_token(tokens: int) -> Placement:
    """Class attention: the first token alone asks, all answer."""
    return Placement(torch.zeros(1, 1, dtype=torch.long), torch.arange(tokens)[None], tokens, tokens)


def merging(calls: Sequence[tuple[Placement | None, Grid]]) -> list[Placement | None]:
    """The places of calls, each with the grid that it is on, told what lies between them: where a grid is coarser than
    that of the placed call before it, tokens were merged."""
    found: list[Placement | None] = []
    below: Grid | None = None
    for place, grid in calls:
        if place is not None:
            if below not in (None, grid):
                place = dataclasses.replace(place, merged=coarser(below, grid))
            below = grid
        found.append(place)
    return found


def laid_out(
    size: Grid,
    first: Grid,
    places: Sequence[Placement | None],
    grid: Grid,
    *,
    covers: Grid | None = None,
    stride: Grid | None = None,
    prefix: int = 0,
    readout: Readout,
    features: str,
    reason: str,
    undroppable: str,
    remembers: bool = False,
) -> Anatomy:
    """The anatomy of a model for pixels of this size whose tokens begin on the grid ``first`` and end on ``grid``.

    ``covers``: pixels that the first grid stands for, by default the whole picture. ``stride``: pixels between the last
    grid's tokens, down and across, by default what makes them cover the picture. No places: how attention mixes tokens
    is not known, or it does not mix them.
    """
    plan = Plan(first, covers or size, prefix, tuple(places), reason)
    # Cells are of whole pixels; where they do not divide the picture, the last ones reach beyond it.
    down, across = stride or (-(-whole // cells) for whole, cells in zip(size, grid, strict=True))
    whole_cells = (grid[0] * down, grid[1] * across)
    return Anatomy(
        (),
        grid,
        whole_cells,
        prefix,
        readout,
        features=features,
        undroppable=undroppable,
        remembers=remembers,
        plan=plan,
    )


def _padded(tokens: Tensor, size: Grid, padding: int) -> Tensor:
    below, right = -tokens.shape[0] % size[0], -tokens.shape[1] % size[1]
    return F.pad(tokens, (0, right, 0, below), value=padding)


def swin(
    name: str,
    size: Grid,
    first: Grid,
    patch: Grid,
    stages: Iterable[Sequence[Any]],
    windows: Callable[[Any, Grid], tuple[Grid, Grid]],
    *,
    features: str,
    merges: Callable[[int], bool] = bool,
    padded: bool = False,
) -> Anatomy:
    """The anatomy of a Swin Transformer for pixels of this size, whose patches lie on the grid ``first``.

    ``stages``: the blocks of each. ``windows``: (window, shift) of a block on a grid. ``merges``: whether tokens merge
    before the stage of this number, by default before all but the first. ``padded``: see ``shifted``.
    """
    places: list[Placement] = []
    grid, side = first, 1  # how many of the first tokens, along each side, are merged into one
    for number, stage in enumerate(stages):
        merged = None
        if merges(number):
            (grid, merged), side = merged_by_two(grid), 2 * side
        for block in stage:
            window, shift = windows(block, grid)
            places.append(shifted(grid, window, shift, merged, padded=padded))
            merged = None
    return laid_out(
        size,
        first,
        places,
        grid,
        covers=(first[0] * patch[0], first[1] * patch[1]),
        stride=(patch[0] * side, patch[1] * side),
        readout=Readout(patches=True),
        features=features,
        reason=f"{name}'s attention stays inside windows",
        undroppable=f"{name} needs all tokens of its windows",
    )
