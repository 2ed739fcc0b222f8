"""Rows of weights carried down through attention that is windowed, pooled, or of one query.

An N×N matrix of such a block is mostly zeros and is never built: a row of weights on the tokens that leave the block is
taken apart into windows, multiplied with each window's attention, and put together again on the tokens that entered.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .layer import Layer, Placement


def by_block(layers: list[Layer]) -> list[list[Layer]]:
    """The calls of each block: one, or several side by side, which have the same input and whose outputs add up."""
    found: list[list[Layer]] = []
    for layer in layers:
        if found and layer.place is not None and layer.place.beside:
            found[-1].append(layer)
        else:
            found.append([layer])
    return found


def averaged_back(row: Tensor, cells: Tensor) -> Tensor:
    """(B, cells) weights on means -> (B, tokens) on what they are means of, ``r_i = r_cell(i) / |cell(i)|``.

    ``cells``: (tokens,), which mean each token is part of; their number where it is part of none.
    """
    sizes = torch.bincount(cells, minlength=row.shape[1] + 1)[: row.shape[1]]
    return F.pad(row / sizes.clamp_min(1), (0, 1))[:, cells]


def windowed(layer: Layer, row: Tensor) -> Tensor:
    """Weights (B, F) on the tokens that leave the block -> (B·W, n) on the queries of its windows; padding has none."""
    return F.pad(row, (0, 1))[:, _placement(layer).queries].flatten(0, 1)


def unwindowed(layer: Layer, shares: Tensor, row: Tensor) -> Tensor:
    """The row (B, F) with the queries' weights (B·W, n) put in their places. Other tokens, as in class attention all
    but the class token, stay what they are."""
    places = _placement(layer).queries.flatten().expand(len(row), -1)
    return F.pad(row, (0, 1)).scatter(1, places, shares.reshape(len(row), -1))[:, :-1]


def from_keys(layer: Layer, given: Tensor) -> Tensor:
    """Weights (B·W, m) on the keys of the windows -> (B, E) on the tokens that entered the block.

    What padding got is lost; a key that is the mean of some tokens passes its weight on to them.
    """
    place = _placement(layer)
    cells = place.entering if place.pooled is None else int(place.pooled.max()) + 1
    given = given.reshape(-1, place.keys.numel())
    got = given.new_zeros(len(given), cells + 1)
    got = got.scatter_add(1, place.keys.flatten().expand(len(given), -1), given)[:, :cells]
    return got if place.pooled is None else averaged_back(got, place.pooled)


def skipped(layer: Layer, row: Tensor) -> Tensor:
    """Weights (B, F) on the tokens that leave the block -> (B, E): what reaches the entering ones by the residual."""
    skip = _placement(layer).skip
    return row if skip is None else averaged_back(row, skip)


def unmerged(layer: Layer, row: Tensor) -> Tensor:
    """Weights on the tokens that enter a block -> on those that left the block below it."""
    merged = _placement(layer).merged
    return row if merged is None else averaged_back(row, merged)


def descended(layers: list[Layer], row: Tensor) -> Tensor:
    """Weights on the tokens that leave the last of these blocks -> on those that enter the first, by residuals and
    means alone: without what attention moves."""
    for layer in reversed(layers):
        if layer.place is not None:
            row = unmerged(layer, skipped(layer, row))
    return row


def _placement(layer: Layer) -> Placement:
    assert layer.place is not None
    return layer.place
