"""KernelSHAP."""

from __future__ import annotations

from itertools import combinations
from math import comb

import torch
from torch import Tensor

from ..options import Seed
from ..perturb import Fill, Samples, Score, chosen_fill
from ..players import Players, play, players_of, shared_out
from ..registry import method
from ..types import Attribution, Trace

ROUNDING = 1e-10  # directions that the subsets do not tell apart, beside those that they do


@method(
    paper="Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, NeurIPS 2017",
    family="perturbation",
    means="Shapley values: how the change of the score from no patches to all is shared out among groups of patches.",
    does_not_mean="Unless all subsets are tried it is an estimate with noise. It depends on how patches are left out, "
    "and its groups are rectangles that do not follow the picture's edges, unless superpixels are asked for.",
    needs={"probe"},
    forwards=515,
    class_specific=True,
    signed=True,
)
def kernel_shap(
    trace: Trace,
    *,
    players: Players = 7,
    superpixels: bool = False,
    samples: Samples = 512,
    fill: Fill = "auto",
    score: Score = "probability",
    seed: Seed = 0,
) -> Attribution:
    """Shapley values of patches, or of groups of them, from a weighted regression on many subsets of the picture.

    Minimises ``Σ_S w(|S|) (v(S) − v(∅) − Σ_{i∈S} φ_i)²`` with ``w(s) = (n−1) / (C(n,s) s (n−s))`` under
    ``Σ φ_i = v(N) − v(∅)``, where v(S) is y with only the patches of S; (B, h, w), summing to ``v(N) − v(∅)`` up to
    rounding (``efficiency_gap``). With at most ``samples`` subsets in all they are enumerated and the values are exact.
    Otherwise the smallest and the largest are taken whole as far as ``samples`` goes, as the authors' code does; the
    others come in random pairs with their complements (Covert and Lee, AISTATS 2021), sizes s in the proportion of
    C(n,s) w(s).

    ``players``: how many a side, or ``"patches"`` for each patch of its own, which needs many more ``samples``. Players
    are rectangles of patches, or with ``superpixels`` connected patches of similar colour that follow the picture's
    edges, as many of them. The patches of a player share its value equally. ``samples``: subsets, one forward each.
    """
    numbers = players_of(trace, players, follow_edges=superpixels)
    count = int(numbers.max()) + 1
    fill, warnings = chosen_fill(trace, fill, none_kept=True)
    coalitions, weights = _subsets(count, samples, seed)
    worth = play(trace, coalitions, numbers, fill, probability=score == "probability")
    # Without the part that all players share equally, what is left sums to zero: the constraint is met by itself.
    members = coalitions.double()
    share = members.mean(1)
    apart = members - share[:, None]
    gram = apart.T @ (weights[:, None] * apart)
    whole = worth[:, -1:] - worth[:, :1]
    rest = (worth[:, 1:-1] - worth[:, :1] - whole * share) * weights
    values = whole / count + rest @ apart @ torch.linalg.pinv(gram, rtol=ROUNDING, hermitian=True)
    found = shared_out(values, numbers, worth, fill)
    if int(torch.linalg.matrix_rank(gram, rtol=ROUNDING, hermitian=True)) < count - 1:
        few = f"{len(coalitions)} subsets do not tell {count} players apart: take more samples or fewer players"
        warnings = [[*own, few] for own in warnings or [[]] * len(worth)]
    return Attribution(found.map, found.facts, warnings)


def _subsets(count: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """About ``samples`` subsets (n, players), neither none nor all, and what each weighs."""
    weights = {size: (count - 1) / (size * (count - size)) for size in range(1, count)}  # of all subsets of a size
    everything = 2**count - 2 <= samples
    coalitions = [torch.zeros(0, count, dtype=torch.bool)]
    weighing = [torch.zeros(0, dtype=torch.float64)]
    room, weight = samples, sum(weights.values())
    for size in range(1, count // 2 + 1):
        own = {size: comb(count, size), count - size: comb(count, size)}
        part = sum(weights[each] for each in own)
        if not everything and sum(own.values()) > room * part / weight:
            break
        for each, number in own.items():
            chosen = torch.tensor(list(combinations(range(count), each)))
            coalitions.append(torch.zeros(number, count, dtype=torch.bool).scatter_(1, chosen, True))
            weighing.append(torch.full((number,), weights[each] / number, dtype=torch.float64))
        room, weight = room - sum(own.values()), weight - part
    else:
        return torch.cat(coalitions), torch.cat(weighing)
    drawn = _drawn(count, size, max(1, room // 2), weights, seed)
    return (
        torch.cat([*coalitions, drawn]),
        torch.cat([*weighing, torch.full((len(drawn),), weight / len(drawn), dtype=torch.float64)]),
    )


def _drawn(count: int, smallest: int, pairs: int, weights: dict[int, float], seed: int) -> Tensor:
    """Pairs of a random subset and its complement, (2 · pairs, players), of sizes from the smallest on."""
    generator = torch.Generator().manual_seed(seed)
    sizes = range(smallest, count - smallest + 1)
    shares = torch.tensor([weights[size] for size in sizes], dtype=torch.float64).cumsum(0)
    wanted = (torch.arange(pairs) + 0.5) / pairs * shares[-1]
    drawn = torch.searchsorted(shares, wanted) + smallest
    order = torch.rand(pairs, count, generator=generator).argsort(1).argsort(1)
    coalitions = order < drawn[:, None]
    return torch.cat([coalitions, ~coalitions])
