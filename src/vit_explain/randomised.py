"""Models whose weights are drawn anew from the head downwards, and what becomes of maps then."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import compress
from typing import Annotated

import torch
from torch import Tensor, nn

from .cases import Case
from .options import Range

Stages = Annotated[int, Range(1, 100)]


class Randomised:
    """A copy of a model whose last layers' weights can be drawn anew; the model itself stays as it is.

    Every tensor of weights is replaced by numbers from a normal distribution with its own mean and standard deviation,
    so that activations keep their scale. Layers count in the order of the model's parameters; those that its scores do
    not depend on, such as a text tower's whose answers are kept, are no part of it.
    """

    def __init__(self, model: nn.Module, seed: int, scores: Callable[[nn.Module], Tensor]) -> None:
        """``scores``: asked once of the copy, to learn which weights they depend on."""
        self.model = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        every = [p for p in self.model.parameters() if p.is_floating_point()]
        drawn = [_drawn(p, generator) for p in every]
        used = _used(every, lambda: scores(self.model))
        self._parameters, self._drawn = list(compress(every, used)), list(compress(drawn, used))
        self._learnt = [p.detach().clone() for p in self._parameters]

    @contextmanager
    def last(self, share: float) -> Iterator[nn.Module]:
        """The model with the last ``share`` of its tensors of weights drawn anew."""
        first = len(self._parameters) - round(share * len(self._parameters))
        with torch.no_grad():
            for parameter, drawn in zip(self._parameters[first:], self._drawn[first:], strict=True):
                parameter.copy_(drawn)
        try:
            yield self.model
        finally:
            with torch.no_grad():
                for parameter, learnt in zip(self._parameters[first:], self._learnt[first:], strict=True):
                    parameter.copy_(learnt)


def over_stages(case: Case, stages: int, alike: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(B,) the mean likeness of the maps with those of the model with 1/S, 2/S ... of its layers drawn anew."""
    assert case.rerandomised is not None
    found = [alike(case.maps, case.rerandomised(stage / stages)) for stage in range(1, stages + 1)]
    return torch.stack(found).mean(0)


def _used(parameters: Sequence[nn.Parameter], scores: Callable[[], Tensor]) -> list[bool]:
    """Which of them the scores depend on; all where no gradient tells."""
    frozen = [p for p in parameters if not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            found = scores()
            if not found.requires_grad:
                return [True] * len(parameters)
            gradients = torch.autograd.grad(found.float().sum(), parameters, allow_unused=True)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return [gradient is not None for gradient in gradients]


@torch.no_grad()
def _drawn(learnt: Tensor, generator: torch.Generator) -> Tensor:
    values = learnt.float()
    deviation = values.std() if values.numel() > 1 else values.abs().mean()
    noise = torch.randn(learnt.shape, generator=generator).to(values)
    return (values.mean() + deviation * noise).to(learnt.dtype)
