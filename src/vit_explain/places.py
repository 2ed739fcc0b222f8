"""Places of methods in one metric, also where they were not all measured on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .metric_registry import Metric

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percent
CHUNK = 200  # resamples at a time
DIGITS = 4  # of a number that places go by; what lies beyond is rounding, and would part methods that are equal

Rows = Mapping[str, NDArray[np.float64]]  # image -> its numbers


@dataclass(frozen=True)
class Place:
    """``rank``: 1, and one more for each method that is better on the images that both have. ``share``: of the methods
    that share images with it, how many are worse, those that are equal counting half; 0 is last and 1 first."""

    rank: int
    share: float


def places(found: Mapping[str, Rows], metric: Metric) -> dict[str, Place]:
    """The place of each method among the others; one that has no image in common with another has the first."""
    of_sets: dict[tuple[str, frozenset[str]], float] = {}

    def value(method: str, images: frozenset[str]) -> float:
        if (method, images) not in of_sets:
            rows = np.array([found[method][image] for image in sorted(images)])
            of_sets[method, images] = float(f"{float(metric.combine(rows[None])[0]):.{DIGITS}g}")
        return of_sets[method, images]

    images = {method: frozenset(rows) for method, rows in found.items()}
    placed = {}
    for method, own in images.items():
        others = [(other, own & theirs) for other, theirs in images.items() if other != method and own & theirs]
        ahead = [(value(other, shared) - value(method, shared)) for other, shared in others]
        ahead = ahead if metric.higher_is_better else [-difference for difference in ahead]
        better, equal = sum(one > 0 for one in ahead), sum(one == 0 for one in ahead)
        worse = len(ahead) - better - equal
        placed[method] = Place(1 + better, (worse + equal / 2) / max(1, len(ahead)))
    return placed


def with_interval(rows: NDArray[np.float64], metric: Metric) -> tuple[float, tuple[float, float] | None]:
    """A metric's number over images (n, c), and the middle 95 % of what it is over images drawn with replacement; one
    image says nothing of others."""
    value = float(metric.combine(rows[None])[0])
    if len(rows) == 1:
        return value, None
    generator = np.random.default_rng(0)
    drawn: list[NDArray[np.float64]] = []
    for _ in range(0, RESAMPLES, CHUNK):
        drawn.append(metric.combine(rows[generator.integers(0, len(rows), (CHUNK, len(rows)))]))
    low, high = np.percentile(np.concatenate(drawn), INTERVAL)
    return value, (float(low), float(high))
