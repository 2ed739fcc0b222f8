"""Models whose weights are drawn anew from the head downwards, and what becomes of maps then."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
from torch import Tensor, nn

from .cases import Case
from .options import Range

Stages = Annotated[int, Range(1, 100)]


class Randomised:
    """A copy of a model whose last layers' weights can be drawn anew; the model itself stays as it is.

    Every tensor of weights is replaced by numbers from a normal distribution with its own mean and standard deviation,
    so that activations keep their scale. Layers count in the order of the model's parameters.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.model = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        self._learnt = [p.detach().clone() for p in self.model.parameters() if p.is_floating_point()]
        self._drawn = [_drawn(p, generator) for p in self._learnt]

    @contextmanager
    def last(self, share: float) -> Iterator[nn.Module]:
        """The model with the last ``share`` of its tensors of weights drawn anew."""
        parameters = [p for p in self.model.parameters() if p.is_floating_point()]
        first = len(parameters) - round(share * len(parameters))
        with torch.no_grad():
            for parameter, drawn in zip(parameters[first:], self._drawn[first:], strict=True):
                parameter.copy_(drawn)
        try:
            yield self.model
        finally:
            with torch.no_grad():
                for parameter, learnt in zip(parameters[first:], self._learnt[first:], strict=True):
                    parameter.copy_(learnt)


def over_stages(case: Case, stages: int, alike: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(B,) the mean likeness of the maps with those of the model with 1/S, 2/S ... of its layers drawn anew."""
    assert case.rerandomised is not None
    found = [alike(case.maps, case.rerandomised(stage / stages)) for stage in range(1, stages + 1)]
    return torch.stack(found).mean(0)


def _drawn(learnt: Tensor, generator: torch.Generator) -> Tensor:
    values = learnt.float()
    deviation = values.std() if values.numel() > 1 else values.abs().mean()
    noise = torch.randn(learnt.shape, generator=generator).to(values)
    return (values.mean() + deviation * noise).to(learnt.dtype)
