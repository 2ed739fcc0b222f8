"""What the package finds in a model: its attention, grid and readout, and which methods explain it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch

from .explainer import Explainer
from .layer import Layer
from .registry import METHODS, by_family, find
from .sharing import layout_refusal
from .surroundings import own
from .types import Readout


@dataclass(frozen=True)
class Inspection:
    """What ``vit-explain inspect`` says of a model."""

    model: str
    family: str
    input: tuple[int, int]  # pixels, height and width
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str
    classes: int
    labels: list[str] | None
    attention: list[str]  # runs of equal calls, first to last; empty where none is read
    grid: tuple[int, int]  # of the tokens that enter the first block
    last_grid: tuple[int, int]  # of those that leave the last
    prefix: int
    readout: str
    undroppable: str | None  # why patches cannot be left out as tokens
    methods: list[str]
    refused: dict[str, str]  # method -> why not

    def document(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


@own()
def inspect(explainer: Explainer) -> Inspection:
    """Look at the model once with a picture of noise.

    Methods of one forward and at most one backward are tried on it; of the others it is only asked whether the way
    attention lies on the picture allows them.
    """
    how = explainer.preprocessing
    pixels = torch.randn(1, len(how.mean), *how.size, generator=torch.Generator().manual_seed(0))
    anatomy, layers = explainer.calls(pixels)
    target = None if explainer.family.classes(explainer.plain) else _first
    compared = explainer.compare(pixels, "fast", target)
    refused = dict(compared.refused)
    for method in METHODS.values():
        reason = None if method.fast else layout_refusal(method, method.needed(method.settings({})), anatomy)
        if reason is not None:
            refused[method.name] = reason
    plan, readout = anatomy.plan, anatomy.readout
    return Inspection(
        model=explainer.model_name,
        family=explainer.family.title,
        input=how.size,
        mean=how.mean,
        std=how.std,
        resize=f"{how.crop_mode}, resized to {how.resized[0]}×{how.resized[1]}, {how.interpolation}",
        classes=explainer.family.classes(explainer.plain),
        labels=explainer.labels,
        attention=_runs(layers),
        grid=anatomy.grid if plan is None else plan.grid,
        last_grid=anatomy.grid,
        prefix=anatomy.prefix if plan is None else plan.prefix,
        readout=_words(readout),
        undroppable=anatomy.undroppable,
        methods=[one.name for _, members in by_family(METHODS.values()) for one in members if one.name not in refused],
        refused={name: refused[name] for name in sorted(refused, key=lambda name: find(name).family)},
    )


def _first(output: Any) -> torch.Tensor:
    """A number an image, of models without classes."""
    tensor = output if isinstance(output, torch.Tensor) else next(v for v in output.values() if v is not None)
    return tensor.flatten(1)[:, 0]


def _runs(layers: Sequence[Layer]) -> list[str]:
    """Neighbouring calls of one shape in a line."""
    shapes = [layer.shape for layer in layers]
    return [
        f"{len(list(run))} × {heads} heads, "
        + (f"{windows} windows of " if windows > 1 else "")
        + f"{queries} queries over {keys} keys"
        for (windows, heads, queries, keys), run in groupby(shapes)
    ]


def _words(readout: Readout) -> str:
    if readout.attention:
        return "a pooling attention of its own"
    parts = [f"token {token}" for token in readout.tokens]
    parts += ["the mean of the patches"] if readout.patches else []
    return " and ".join(parts)
