"""Games for Shapley values: who the players are, what coalitions of them are worth, and values as a map."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .options import Range
from .perturb import Fill, answers, dropped_fact
from .superpixels import superpixels
from .types import Attribution, Trace

Players = Annotated[int, Range(1, 256)] | Literal["patches"]  # so many a side, or every patch


def players_of(trace: Trace, players: int | str, *, follow_edges: bool) -> Tensor:
    """(B, h, w) the number of the player that each patch belongs to, or (1, h, w) where it is the same for all images.

    A player is a rectangle of patches, a patch, or with ``follow_edges`` a superpixel of patches that begins there.
    """
    grid, (height, width) = trace.anatomy.grid, trace.anatomy.covers
    regular = rectangles(grid, players)
    if not follow_edges:
        return regular[None]
    # One image at a time, so that its superpixels are the same alone and in a batch.
    colours = [F.adaptive_avg_pool2d(one[None, :, :height, :width].float(), grid)[0] for one in trace.pixels]
    return torch.stack([superpixels(one.permute(1, 2, 0), regular) for one in colours])


def rectangles(grid: tuple[int, int], players: int | str) -> Tensor:
    """(h, w) the number of the rectangle of patches that each patch belongs to, so many of them a side."""
    rows, columns = (side if players == "patches" else min(int(players), side) for side in grid)
    down = torch.arange(grid[0]) * rows // grid[0]
    across = torch.arange(grid[1]) * columns // grid[1]
    return down[:, None] * columns + across


def play(trace: Trace, coalitions: Tensor, players: Tensor, fill: Fill, *, probability: bool) -> Tensor:
    """v (B, n + 2) float64 on the CPU: of nobody, of the coalitions (n, players) in order, of everybody."""
    nobody = torch.zeros(1, coalitions.shape[1], dtype=torch.bool)
    keep = torch.cat([nobody, coalitions, ~nobody])[:, players].transpose(0, 1)
    return answers(trace, keep, fill, probability=probability).double().cpu()


def shared_out(values: Tensor, players: Tensor, worth: Tensor, fill: Fill) -> Attribution:
    """Players' values (B, players) as a map whose sum is theirs: a player's patches share its value equally.

    ``worth`` (B, n + 2) as ``play`` gives it. ``efficiency_gap``: how far the map's sum is from what everybody is
    worth less what nobody is, from rounding.
    """
    owners = players.flatten(1)
    sizes = torch.stack([one.bincount() for one in owners])
    found = (values / sizes).gather(1, owners.expand(len(values), -1)).float()
    gap = found.double().sum(1) - (worth[:, -1] - worth[:, 0])
    facts = {"score": worth[:, -1], "score_of_nothing": worth[:, 0], "efficiency_gap": gap}
    return Attribution(found.unflatten(1, players.shape[1:]), facts | dropped_fact(fill, worth))
