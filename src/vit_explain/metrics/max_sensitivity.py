"""Max-sensitivity."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..cases import Case
from ..metric_registry import metric
from ..options import Range
from ..seeds import uniform_noise


@metric(
    paper="Yeh et al., On the (In)fidelity and Sensitivity of Explanations, NeurIPS 2019",
    family="robustness",
    higher_is_better=False,
    means="How much a map changes when the picture changes so little that nobody would see it.",
    does_not_mean="A map that ignores the picture does not change at all: a small number alone is no merit.",
    maps=10,
    needs={"maps"},
)
def max_sensitivity(
    case: Case,
    *,
    samples: Annotated[int, Range(1, 1000)] = 10,
    radius: Annotated[float, Range(0, 10)] = 0.02,
) -> Tensor:
    """Largest relative change of the map under small noise; lower is better.

    ``max_δ ‖map(x + δ) − map(x)‖ / ‖map(x)‖`` over ``samples`` draws of uniform noise, ``|δ| ≤ radius`` in the units of
    the model's input (standard deviations of pixels); (B,), none of maps of zeros. Radius and number of draws are
    captum's defaults.
    """
    assert case.explain is not None
    pixels = case.pictures.pixels
    generators = case.pictures.generators()
    largest = torch.zeros(len(pixels), dtype=torch.float32, device=case.maps.device)
    for _ in range(samples):
        moved = case.explain(pixels + radius * uniform_noise(pixels, generators), case.targets)
        largest = torch.maximum(largest, (moved - case.maps).flatten(1).norm(dim=1))
    return largest / case.maps.flatten(1).norm(dim=1)
