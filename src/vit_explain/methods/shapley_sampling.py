"""Shapley values by sampling permutations."""

from __future__ import annotations

from typing import Annotated

import torch

from ..options import Range, Seed
from ..perturb import Fill, Score, chosen_fill
from ..players import Players, play, players_of, shared_out
from ..registry import method
from ..types import Attribution, Trace


@method(
    paper="Castro, Gómez and Tejada, Polynomial Calculation of the Shapley Value Based on Sampling, COR 2009",
    family="perturbation",
    means="Shapley values: what each group of patches adds to the score when it joins, on average over random orders.",
    does_not_mean="A mean over few orders has noise, which standard_error tells. It depends on how patches are left "
    "out, and its groups are rectangles that do not follow the picture's edges, unless superpixels are asked for.",
    needs={"probe"},
    forwards=483,
    class_specific=True,
    signed=True,
)
def shapley_sampling(
    trace: Trace,
    *,
    players: Players = 7,
    superpixels: bool = False,
    samples: Annotated[int, Range(1, 1e6)] = 10,
    fill: Fill = "auto",
    score: Score = "probability",
    seed: Seed = 0,
) -> Attribution:
    """Shapley values of patches, or of groups of them: what each adds to the score when it joins, over random orders.

    ``φ_i = mean over orders π of v(those before i in π, and i) − v(those before i in π)``, where v(S) is y with only
    the patches of S; (B, h, w). Every order's terms telescope, so the map sums to ``v(N) − v(∅)`` up to rounding
    (``efficiency_gap``). Every second order is the one before it reversed, which takes part of the noise away
    (Mitchell et al., JMLR 2022). ``standard_error``: of a player's value, the root mean square over the players, from
    how pairs of orders differ.

    ``players``: how many a side, or ``"patches"`` for each patch of its own. Players are rectangles of patches, or with
    ``superpixels`` connected patches of similar colour that follow the picture's edges, as many of them. The patches of
    a player share its value equally. ``samples``: orders; each takes a forward for every player but one, 48 for the
    default's 49.
    """
    numbers = players_of(trace, players, follow_edges=superpixels)
    count = int(numbers.max()) + 1
    fill, warnings = chosen_fill(trace, fill, none_kept=True)
    generator = torch.Generator().manual_seed(seed)
    places = torch.stack([torch.randperm(count, generator=generator) for _ in range((samples + 1) // 2)])
    # (orders, players): when each player joins; a reversed order follows its own.
    places = torch.stack([places, count - 1 - places], 1).flatten(0, 1)[:samples]
    coalitions = places[:, None] < torch.arange(1, count)[:, None]
    worth = play(trace, coalitions.flatten(0, 1), numbers, fill, probability=score == "probability")
    between = worth[:, 1:-1].unflatten(1, (samples, count - 1))
    ends = [worth[:, end, None, None].expand(-1, samples, 1) for end in (0, -1)]
    gains = torch.cat([ends[0], between, ends[1]], 2).diff(dim=2)
    gains = gains.gather(2, places.expand(len(worth), -1, -1))
    found = shared_out(gains.mean(1), numbers, worth, fill)
    pairs = samples // 2
    if pairs > 1:
        means = gains[:, : 2 * pairs].unflatten(1, (pairs, 2)).mean(2)
        found.facts["standard_error"] = (means.var(1) / pairs).mean(1).sqrt()
    return Attribution(found.map, found.facts, warnings)
