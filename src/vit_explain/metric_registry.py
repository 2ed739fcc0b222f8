"""Metrics by name: what each measures, which way is better and what it takes, as data beside its code.

A metric is a function ``(case, *, option=default, ...) -> (B,)``, one number an image, or a ``Measured``, decorated
with ``@metric(...)`` in a module of ``vit_explain.metrics``. NaN stands for an image of which it says nothing. Some are
ratios of sums over images: they return (B, c) and say how the sums become a number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .errors import OptionError, near
from .options import Option, options_of, settled

Combine = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # (..., images, c) -> (...)

METRICS: dict[str, Metric] = {}
# What kinds of metrics there are, in the order in which lists show them.
FAMILIES = ("faithfulness", "localisation", "robustness", "sanity", "complexity")
# What a metric asks for beside the map and the model's answers.
NEEDS = {
    "labels": "the true class of each image",
    "truth": "boxes or masks of the object",
    "mosaic": "pictures put together of several, with one class each",
    "maps": "further maps of the same method",
}


@dataclass(frozen=True, eq=False)
class Measured:
    """A metric's numbers, and the curve of each image that they are made of."""

    values: Tensor  # (B,)
    curve: Tensor  # (B, points), over a share of the image from 0 to 1, which the metric's ``along`` names


@dataclass(frozen=True)
class Metric:
    """A registered metric and the facts about it."""

    name: str
    run: Callable[..., Any]
    summary: str
    paper: str
    family: str
    higher_is_better: bool
    means: str
    does_not_mean: str
    forwards: int
    maps: int
    needs: frozenset[str]
    options: dict[str, Option]
    parts: Callable[..., Sequence[Any]]
    combine: Combine
    along: str

    @property
    def direction(self) -> str:
        return "higher" if self.higher_is_better else "lower"

    def settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """All options: the given ones checked, defaults for the others."""
        return settled(self.options, given, self.name)


def mean(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over images, (..., images, 1) -> (...)."""
    return rows[..., 0].mean(-1)


def metric(
    *,
    paper: str,
    family: str,
    higher_is_better: bool,
    means: str,
    does_not_mean: str,
    forwards: int = 0,
    maps: int = 0,
    needs: Iterable[str] = (),
    parts: Callable[..., Sequence[Any]] = lambda **_: (),
    combine: Combine = mean,
    along: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function under its own name; the first line of its docstring is the summary.

    ``forwards``, ``maps``: forwards of the model and further maps of the method that an image takes with the default
    options. ``parts``: from the options, of which parts of the image it wants the model's answers (``removal.Part``),
    so that those of several metrics are asked for together. ``combine``: how the images' numbers become one.
    ``along``: what the axis of its curves is, where it measures curves.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        if unknown := set(needs) - set(NEEDS):
            raise ValueError(f"{name}: unknown needs {sorted(unknown)}")
        if family not in FAMILIES:
            raise ValueError(f"{name}: unknown family {family!r}")
        METRICS[name] = Metric(
            name,
            function,
            (inspect.getdoc(function) or "").splitlines()[0],
            paper,
            family,
            higher_is_better,
            means,
            does_not_mean,
            forwards,
            maps,
            frozenset(needs),
            options_of(function),
            parts,
            combine,
            along,
        )
        return function

    return register


def find_metric(name: str) -> Metric:
    """The metric of this name; an error with near matches otherwise."""
    if name not in METRICS:
        raise OptionError(f"there is no metric {name!r}; {near(name, METRICS)}")
    return METRICS[name]


def choose_metrics(names: Sequence[str]) -> list[Metric]:
    """Each metric once, by family. ``"all"`` stands for every metric, ``"fast"`` for those without further maps."""
    lists = {"all": list(METRICS.values()), "fast": [one for one in METRICS.values() if not one.maps]}
    chosen = {one.name for name in names for one in lists.get(name) or [find_metric(name)]}
    if not chosen:
        raise OptionError('name at least one metric, or "fast" or "all"')
    return sorted((METRICS[name] for name in chosen), key=lambda one: (FAMILIES.index(one.family), one.name))
