"""Maximum flow through stacked attention to every input token, exactly and with a certificate for each.

Graph, source, sinks and cuts are those of ``flow_cuts``. For each sink a cheap cut (an upper bound) is proved to be the
cheapest by a flow that fills it (a lower bound), or replaced:

1. All edges over the cut are taken as full. What is left falls into two parts that have nothing to do with each other:
   the source's side has to deliver what leaves over the cut, and the sink's side has to carry it away. So the dense
   layers of edges over the cut never reach the solver.
2. Both parts are solved on a sparse *skeleton* of their edges, in whole numbers: capacities over the cut rounded up,
   all others down. If both fill the cut, so they do in the full graph, and the cut is proved to be the cheapest.
3. If not, the solver's own minimum cuts are priced in the full graph. A cheaper one replaces the cut. Otherwise the
   skeleton lacks edges that lead over them, and the largest are added, for later sinks, too.

Every round finds a cheaper cut or adds an edge, and there are finitely many of both. If no edge is missing over the
solver's cuts, they cost as much in the full graph as what flows, so only rounding is left between the bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from .flow_cuts import Floats, cheapest, costs

LARGEST = 2  # entries of every row and column that a skeleton begins with
GROUP = 256  # sinks whose first cuts are searched together
FEWEST = 64  # edges that a skeleton is extended by, twice as many in each further round for the same sink
COVER = 4  # times the gap between the bounds that added edges should close
WHOLE = np.iinfo(np.int32).max  # the solver counts in 32 bits
CHEAPER = 1 - 1e-13  # a cut that is cheaper by less is no progress, but rounding

SOURCE_CUT, SINK_CUT, OTHER_CUT = range(3)


@dataclass(eq=False)
class Flows:
    """One number a sink, (N,) each."""

    values: Floats  # the cost of the cheapest cut, in float64: the maximum flow
    lower: Floats  # what a flow was found for
    cuts: NDArray[np.int8]  # all that the source gives, all that the sink is given, or another cut

    @property
    def gaps(self) -> Floats:
        """``(values − lower) / values``, and 0 where nothing flows."""
        return (self.values - self.lower) / np.where(self.values > 0, self.values, 1)


def maximum_flows(supply: Floats, matrices: Floats, largest: int = LARGEST) -> Flows:
    """The maximum flow from the source to each input token, alone.

    ``supply``: (N,), what the source may give each token of the top level. ``matrices``: (m, N, N), m ≥ 1, capacities
    from the top level to the input, rows give and columns take. None is negative; they need not be normalised.
    ``largest``: how many entries of every row and column a skeleton begins with; results do not depend on it.
    """
    (given,) = np.nonzero(supply)
    if len(given) != 1 or len(matrices) == 1:
        return _flows(supply, matrices, largest)
    # A single edge in front of all others: a level less to solve.
    (token,) = given
    found = _flows(matrices[0, token], matrices[1:], largest)
    most = supply[token]
    found.cuts[found.values > most] = SOURCE_CUT
    return Flows(np.minimum(found.values, most), np.minimum(found.lower, most), found.cuts)


def _flows(supply: Floats, matrices: Floats, largest: int) -> Flows:
    tokens = len(supply)
    skeleton = _Skeleton(supply, matrices, largest)
    flows = Flows(np.zeros(tokens), np.zeros(tokens), np.full(tokens, OTHER_CUT, np.int8))
    for first in range(0, tokens, GROUP):
        sinks = np.arange(first, min(first + GROUP, tokens))
        cost, labels = cheapest(supply, matrices, sinks)
        for place, sink in enumerate(sinks):
            value, lower, cut = skeleton.prove(int(sink), cost[place], labels[:, place] > 0)
            flows.values[sink], flows.lower[sink] = value, lower
            if not cut.any():
                flows.cuts[sink] = SOURCE_CUT
            elif cut.all():
                flows.cuts[sink] = SINK_CUT
    return flows


class _Skeleton:
    """Few edges between levels that most flows can do with; the sink's own column and all at the ends come on top."""

    def __init__(self, supply: Floats, matrices: Floats, largest: int) -> None:
        self.supply, self.matrices = supply, matrices
        self.levels, self.tokens = matrices.shape[:2]
        self.source = self.levels * self.tokens
        own, count = np.arange(self.tokens), min(largest, self.tokens)
        self.present = np.zeros((self.levels - 1, self.tokens, self.tokens), bool)
        for chosen, matrix in zip(self.present, matrices, strict=False):
            chosen[own, own] = True
            chosen[supply.argmax()] = True
            chosen[own[:, None], np.argpartition(-matrix, count - 1, 1)[:, :count]] = True
            chosen[np.argpartition(-matrix, count - 1, 0)[:count], own] = True
        self.present &= matrices[:-1] > 0
        self.tails = self.heads = np.zeros(0, np.int32)
        self.capacities = np.zeros(0)
        self._list(*np.nonzero(self.present))

    def _list(self, level: NDArray[np.intp], tail: NDArray[np.intp], head: NDArray[np.intp]) -> None:
        self.present[level, tail, head] = True
        upper = level * self.tokens
        self.tails = np.concatenate([self.tails, (upper + tail).astype(np.int32)])
        self.heads = np.concatenate([self.heads, (upper + self.tokens + head).astype(np.int32)])
        self.capacities = np.concatenate([self.capacities, self.matrices[level, tail, head]])

    def prove(self, sink: int, value: float, cut: NDArray[np.bool_]) -> tuple[float, float, NDArray[np.bool_]]:
        """The cheapest cut's cost, the flow found, and the cut (m, N), from a cut to begin with and its cost."""
        column = self.matrices[-1][:, sink]
        lower, edges = 0.0, FEWEST
        while value > 0:
            short, rounding, network, flow = self._solve(sink, column, value, cut)
            lower = max(lower, value - short)
            if not short:
                break
            from_source, to_sink = self._reached(network, flow)
            cuts = np.stack([cut & from_source, cut | from_source, cut & ~to_sink, cut | ~to_sink], 1)
            found = costs(self.supply, self.matrices, np.broadcast_to(column, (4, self.tokens)), cuts.astype(float))
            best = found.argmin()
            if found[best] < value * CHEAPER:
                value, cut = float(found[best]), cuts[:, best]
            elif short <= rounding or not sum(
                [self._extend(sink, cut, other, short, edges) for other in cuts.swapaxes(0, 1)]
            ):
                break
            else:
                edges *= 2
        return value, min(lower, value), cut

    def _solve(
        self, sink: int, column: Floats, value: float, cut: NDArray[np.bool_]
    ) -> tuple[float, float, csr_array, csr_array]:
        """By how much the two parts fail to fill the cut, what rounding may do, the network and what flows in it."""
        own, tokens = np.arange(self.tokens), self.tokens
        source, target = self.source, self.source + 1
        leaving, arriving = np.zeros((2, self.levels - 1, tokens))
        for level in range(self.levels - 1):
            upper, lower = cut[level], ~cut[level + 1]
            if upper.any() and lower.any():
                leaving[level] = (self.matrices[level] @ lower) * upper
                arriving[level] = (upper @ self.matrices[level]) * lower
        between = np.arange(leaving.size)
        # (from, to, capacities, which of them are over the cut)
        parts = [
            (source, own, self.supply, ~cut[0]),
            (source - tokens + own, target, column, cut[-1]),
            (between, target, leaving.ravel(), True),
            (source, tokens + between, arriving.ravel(), True),
        ]
        side = cut.ravel()
        inside = side[self.tails] == side[self.heads]
        parts.append((self.tails[inside], self.heads[inside], self.capacities[inside], False))
        level, tail = np.nonzero(~self.present[:, :, sink] & (cut[:-1] == cut[1:, sink, None]))
        upper = level * tokens
        parts.append((upper + tail, upper + tokens + sink, self.matrices[level, tail, sink], False))
        tails, heads, capacities, over = (
            np.concatenate([np.broadcast_to(part[place], part[2].shape) for part in parts]) for place in range(4)
        )
        halves = 1 if cut.all() or not cut.any() else 2
        scale = (WHOLE - halves * len(side)) / (halves * value)
        counts = np.minimum(capacities, value) * scale
        # A flow that fills an edge over the cut beyond its capacity can be cut down to just that.
        counts = np.where(over, np.ceil(counts), counts).astype(np.int32)
        used = counts > 0
        places = (tails[used].astype(np.int32), heads[used].astype(np.int32))
        network = csr_array((counts[used], places), shape=(target + 1, target + 1))
        result = maximum_flow(network, source, target)
        short = int(counts[over].sum(dtype=np.int64)) - int(result.flow_value)
        return short / scale, tokens / scale, network, result.flow

    def _reached(self, network: csr_array, flow: csr_array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(m, N) each: tokens that more could still flow to from the source, and from which to the sink."""
        left = csr_array(network - flow)
        left.eliminate_zeros()
        reached = []
        for graph, start in ((left, self.source), (csr_array(left.T), self.source + 1)):
            nodes = np.zeros(self.source + 2, bool)
            nodes[breadth_first_order(graph, start, return_predecessors=False)] = True
            reached.append(nodes[: self.source].reshape(self.levels, self.tokens))
        return reached[0], reached[1]

    def _extend(self, sink: int, cut: NDArray[np.bool_], other: NDArray[np.bool_], gap: float, edges: int) -> int:
        """Add the largest missing edges over the other cut that are not over the first; how many they were."""
        found = []
        for level in range(self.levels - 1):
            for side in (False, True):
                tails = np.flatnonzero(other[level] & (cut[level] == side))
                heads = np.flatnonzero(~other[level + 1] & (cut[level + 1] == side))
                heads = heads[heads != sink]
                places = np.ix_(tails, heads)
                tail, head = np.nonzero((self.matrices[level][places] > 0) & ~self.present[level][places])
                found.append((np.full(len(tail), level), tails[tail], heads[head]))
        level, tail, head = (np.concatenate(part) for part in zip(*found, strict=True))
        if not len(level):
            return 0
        capacities = self.matrices[level, tail, head]
        order = np.argsort(-capacities, kind="stable")
        enough = np.searchsorted(np.cumsum(capacities[order]), COVER * gap) + 1
        chosen = order[: max(edges, int(enough))]
        self._list(level[chosen], tail[chosen], head[chosen])
        return len(chosen)
