"""Occlusion."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..options import Range
from ..perturb import Fill, Score, answers, chosen_fill, dropped_fact
from ..registry import method
from ..types import Attribution, Trace


@method(
    paper="Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014",
    family="perturbation",
    means="How much the score falls when a patch is left out; negative where it rises.",
    does_not_mean="Patches are left out place by place, so what the picture shows twice looks needless, and what "
    "counts only together is not found. It depends on how patches are left out.",
    needs={"probe"},
    forwards=198,
    class_specific=True,
    signed=True,
)
def occlusion(
    trace: Trace, *, window: Annotated[int, Range(1, 256)] = 1, fill: Fill = "auto", score: Score = "probability"
) -> Attribution:
    """How much the score falls when a patch is left out of the picture.

    ``Δ(W) = y(all patches) − y(all but the window W)`` for every window of ``window`` by ``window`` patches on the
    grid, one patch apart; a patch's value is the mean over the windows it is in, (B, h, w). One forward a window: 196
    on a 14 by 14 grid, and one of the whole picture. Negative where leaving a patch out raises the score.

    ``fill``: how patches are left out; the paper paints grey squares, a ViT can go without.
    """
    h, w = trace.anatomy.grid
    hidden = _windows(h, w, min(window, h), min(window, w))
    fill, warnings = chosen_fill(trace, fill, none_kept=window >= max(h, w))
    nothing = torch.zeros(1, h, w, dtype=torch.bool)
    y = answers(trace, ~torch.cat([nothing, hidden]), fill, probability=score == "probability")
    fall, spread = y[:, :1] - y[:, 1:], hidden.flatten(1).to(y)
    # Image by image: a product of all images at once may round otherwise than that of one.
    values = torch.stack([own @ spread for own in fall]) / spread.sum(0)
    return Attribution(values.unflatten(1, (h, w)), {"score": y[:, 0]} | dropped_fact(fill, y), warnings)


def _windows(h: int, w: int, height: int, width: int) -> Tensor:
    """(n, h, w) booleans: each place of a window on the grid."""
    tops, lefts = torch.arange(h - height + 1)[:, None], torch.arange(w - width + 1)[:, None]
    rows = (torch.arange(h) >= tops) & (torch.arange(h) < tops + height)
    columns = (torch.arange(w) >= lefts) & (torch.arange(w) < lefts + width)
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)
