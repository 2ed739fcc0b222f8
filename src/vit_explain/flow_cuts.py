"""Cuts through stacked attention: what they cost, and cheap cuts to begin with.

Tokens stand on m levels. A source gives token i of level 0 at most ``supply[i]``; token i of level l gives token k of
the next at most ``matrices[l, i, k]``; the last matrix leads to the input tokens, of which one, the sink, is asked for.
A cut says of every token on every level whether it stays on the source's side. It costs the capacity that leads from
that side to the sink's, and no flow is larger than any cut's cost.

Labels are (m, J, N) numbers, 1 on the source's side and else 0, of J cuts for sinks whose columns of the last matrix
are ``columns`` (J, N); costs are (J,).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PASSES = 6  # of a search up and down the levels; most end sooner, and what is missed is found while solving


def costs(supply: Floats, matrices: Floats, columns: Floats, labels: Floats) -> Floats:
    """(J,)."""
    found = (1 - labels[0]) @ supply + (labels[-1] * columns).sum(1)
    for upper, lower, matrix in zip(labels, labels[1:], matrices, strict=False):
        found += ((upper @ matrix) * (1 - lower)).sum(1)
    return found


def cheapest(supply: Floats, matrices: Floats, sinks: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """The cheapest cuts that are quickly found for each of these sinks: costs (J,) and labels (m, J, N)."""
    columns = matrices[-1].T[sinks]
    labels = np.zeros((len(matrices), len(sinks), len(supply)))
    # The two ends: all that the source gives, and all that the sink is given.
    at_source, at_sink = np.full(len(sinks), supply.sum()), columns.sum(1)
    labels[:, at_sink < at_source] = 1
    found = np.minimum(at_source, at_sink)
    # Where the ends are as narrow as any place between them there is nothing to search.
    open_ = np.flatnonzero(np.minimum(columns, _arriving(supply, matrices)[-1]).sum(1) < found)
    if len(open_):
        for start in _starts(supply, matrices, columns[open_], sinks[open_]):
            cost, start = _descend(supply, matrices, columns[open_], start)
            better = cost < found[open_]
            found[open_[better]] = cost[better]
            labels[:, open_[better]] = start[:, better]
    return found, labels


def _arriving(supply: Floats, matrices: Floats) -> list[Floats]:
    """The most that can arrive at each token of each level: a token hands on no more than it was given."""
    most = [supply]
    for matrix in matrices[:-1]:
        most.append(np.minimum(matrix, most[-1][:, None]).sum(0))
    return most


def _starts(supply: Floats, matrices: Floats, columns: Floats, sinks: NDArray[np.intp]) -> Iterator[Floats]:
    """Cuts to begin a search at; with residual connections a token tends to be on one side on all levels."""
    guess = np.zeros((len(matrices), *columns.shape))
    onwards = columns
    for level, most in reversed(list(enumerate(_arriving(supply, matrices)))):
        if level < len(matrices) - 1:
            onwards = (1 - guess[level + 1]) @ matrices[level].T
        guess[level] = most > onwards
    yield guess
    read = np.zeros_like(guess)
    read[:, :, supply.argmax()] = 1
    yield read
    rest = np.ones_like(guess)
    rest[:, np.arange(len(sinks)), sinks] = 0
    yield rest


def _descend(supply: Floats, matrices: Floats, columns: Floats, labels: Floats) -> tuple[Floats, Floats]:
    """Costs and labels after each level in turn took, the others being given, its cheapest labels."""
    last = len(matrices) - 1
    labels = labels.copy()
    cost = costs(supply, matrices, columns, labels)
    for _ in range(PASSES):
        for level in (*range(last), *range(last, -1, -1)):
            coming = labels[level - 1] @ matrices[level - 1] if level else supply
            going = (1 - labels[level + 1]) @ matrices[level].T if level < last else columns
            labels[level] = coming > going
        before, cost = cost, costs(supply, matrices, columns, labels)
        if np.allclose(cost, before, rtol=1e-12, atol=0):
            break
    return cost, labels
