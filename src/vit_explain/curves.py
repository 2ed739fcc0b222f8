"""What metrics make of the model's answers to pictures with parts removed."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Literal

import torch
from torch import Tensor

from .cases import Case
from .options import Range
from .removal import Filling, Level, Part, steps
from .targets import probabilities

Steps = Annotated[int, Range(2, 1e5)]
Scale = Literal["probability", "logit"]
Reference = Literal["label", "target"]  # the true class, or the one that was explained


def kept(shares: Callable[[int], tuple[Fraction, ...]], *most: bool) -> Callable[..., list[Part]]:
    """For metrics with the options steps, level and fill: what they want answers about, ``most`` or least relevant."""

    def parts(steps: int, level: Level, fill: Filling, **_: object) -> list[Part]:
        return [Part(one, shares(steps), level, fill) for one in most]

    return parts


def area(curve: Tensor) -> Tensor:
    """(B, N + 1) -> (B,): the area under equally spaced points over an axis of length one, by trapezoids."""
    return (curve.sum(1) - curve[:, 0] / 2 - curve[:, -1] / 2) / (curve.shape[1] - 1)


def inner(number: int) -> tuple[Fraction, ...]:
    """Shares that stay when ``1/N`` to ``(N−1)/N`` are removed, in this order."""
    return tuple(1 - share for share in steps(number, 1, number - 1))


def scaled(case: Case, scores: Tensor, score: Scale) -> Tensor:
    """(B, shares, classes) -> (B, shares) of the class explained."""
    return case.of_target(probabilities(scores) if score == "probability" else scores)


def correct(case: Case, scores: Tensor, reference: Reference) -> Tensor:
    """(B, shares, classes) -> (B,): how often the class is first; NaN for images whose class is not known."""
    wanted = case.targets if reference == "target" else case.labels
    if wanted is None:
        return torch.full((len(scores),), torch.nan)
    first = scores.argmax(-1)
    wanted = wanted.to(first.device)
    return (first == wanted[:, None]).float().mean(1).masked_fill(wanted < 0, torch.nan)
