"""What the tables share: bare models, timing in turns, and rows that say whether a limit is met."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from rich.table import Table

Work = Callable[[], object]

MODELS = {"ViT-B/16": "vit_base_patch16_224", "DeiT-Ti": "deit_tiny_patch16_224"}
MAPS_A_BARE_RUN = 3  # of a round; a machine's speed drifts little in that time


def build(name: str, **options: object) -> Any:
    """Random weights: speed does not depend on them."""
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **options).eval()


def images(batch: int, side: int = 224) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def forward(model: torch.nn.Module, pixels: torch.Tensor) -> None:
    with torch.inference_mode():
        model(pixels)


def backward(model: torch.nn.Module, pixels: torch.Tensor) -> None:
    pixels = pixels.clone().requires_grad_()
    logits = model(pixels)
    torch.autograd.grad(logits.amax(1).sum(), pixels)


def seconds(work: Work) -> float:
    began = _clock()
    work()
    return _clock() - began


def _clock() -> float:
    """Read when a CUDA device, if this process uses one, has done all that was asked of it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Timing:
    """Medians over rounds; the ratio is the median of the rounds' ratios work / bare."""

    bare: float
    work: float
    ratio: float


def in_turns(bare: Work, works: Sequence[Work], rounds: int) -> list[Timing]:
    """Each work beside the bare run before it, which serves a few of them; the very first runs are not counted."""
    bare(), works[0]()
    found: list[list[tuple[float, float]]] = [[] for _ in works]
    for _ in range(rounds):
        plain = 0.0
        for number, work in enumerate(works):
            if number % MAPS_A_BARE_RUN == 0:
                plain = seconds(bare)
            found[number].append((plain, seconds(work)))
    return [
        Timing(*(statistics.median(part) for part in zip(*((a, b, b / a) for a, b in pairs), strict=True)))
        for pairs in found
    ]


def table(title: str, *columns: str) -> Table:
    made = Table(title=title, title_justify="left")
    for column in columns:
        made.add_column(column, justify="right")
    return made


def at_most(value: float, limit: float | None) -> tuple[str, str, str]:
    """The value, its limit, and whether it is met."""
    return f"{value:.2f}", "" if limit is None else f"{limit:g}", "" if limit is None else _met(value <= limit)


def at_least(value: float, limit: float | None) -> tuple[str, str, str]:
    return f"{value:.2f}", "" if limit is None else f"{limit:g}", "" if limit is None else _met(value >= limit)


def milliseconds(value: float, digits: int = 0) -> str:
    return f"{value * 1e3:.{digits}f}"


def words(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _met(is_met: bool) -> str:
    return "yes" if is_met else "NO"
