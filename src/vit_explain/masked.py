"""Pictures faded out where a map is low."""

from __future__ import annotations

import torch
from torch import Tensor

from .cases import Case
from .targets import probabilities


def probability_of_masked(case: Case) -> Tensor:
    """(B,) the class's probability in ``x ⊙ m``, m the map brought to [0, 1] and resized bilinearly to the pixels.

    Of a map that is the same everywhere nothing is more relevant than the rest: m is one.
    """
    pixels, (height, width) = case.pictures.pixels, case.pictures.anatomy.covers
    maps = case.at("pixel").to(pixels.device)
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    mask = torch.where(high > low, (maps - low) / (high - low), 1.0).view(-1, 1, height, width)
    faded = pixels.clone()
    faded[..., :height, :width] *= mask.to(faded.dtype)
    with torch.no_grad():
        _, scores = case.pictures.subject.respond(faded)
    return case.of_target(probabilities(scores))
