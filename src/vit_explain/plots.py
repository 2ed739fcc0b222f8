"""Drawings of scores: means with their intervals, and curves with bands, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .results import Score

WIDTH, LINE = 7.0, 0.21  # inches
SHOWN = 6  # curves in colour; the others are grey
RESAMPLES, INTERVAL = 500, (2.5, 97.5)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's, for every eye
GREY = "#9aa0a6"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vit-explain",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def intervals(scores: Mapping[str, Score], baselines: Sequence[str], title: str) -> str:
    """A dot a method at its mean, best on top, with a line over its interval; baselines are grey, with a line down."""
    import matplotlib
    from matplotlib.figure import Figure

    names = sorted(scores, key=lambda name: scores[name].rank, reverse=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 0.9 + LINE * len(names)), layout="constrained")
        axes = figure.add_subplot()
        for row, name in enumerate(names):
            score, colour = scores[name], GREY if name in baselines else COLOURS[0]
            if score.interval is not None:
                axes.plot(score.interval, [row, row], color=colour, linewidth=1.5)
            axes.plot(score.value, row, "o", color=colour, markersize=4)
            if name in baselines:
                axes.axvline(score.value, color=GREY, linewidth=0.6, linestyle=":")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.7, len(names) - 0.3)
        axes.set_title(title, loc="left", fontsize=9)
        return _svg(figure)


def curves(found: Mapping[str, NDArray[np.float64]], coloured: Sequence[str], title: str, along: str) -> str:
    """Mean curves (n, points) over images; those to be ``coloured`` with their 95 % bootstrap bands and names."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for name, values in found.items():
            share = np.linspace(0, 1, values.shape[1])
            if name not in coloured:
                axes.plot(share, values.mean(0), color=GREY, linewidth=0.5, alpha=0.7)
        for colour, name in zip(COLOURS, coloured, strict=False):
            values = found[name]
            share = np.linspace(0, 1, values.shape[1])
            low, high = _band(values)
            axes.fill_between(share, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(share, values.mean(0), color=colour, linewidth=1.5, label=name)
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel(along)
        axes.set_ylabel("probability of the class")
        axes.legend(frameon=False, fontsize=8)
        return _svg(figure)


def _band(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The middle 95 % of the mean over images drawn with replacement, at each point."""
    drawn = np.random.default_rng(0).multinomial(len(values), np.full(len(values), 1 / len(values)), RESAMPLES)
    low, high = np.percentile(drawn @ values / len(values), INTERVAL, 0)
    return low, high


def _svg(figure: Any) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
