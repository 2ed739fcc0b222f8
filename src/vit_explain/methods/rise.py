"""RISE."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ..options import Range, Seed
from ..perturb import Samples, chunked, turns
from ..registry import method
from ..types import Attribution, Trace


@method(
    paper="Petsiuk, Das and Saenko, RISE: Randomized Input Sampling for Explanation of Black-box Models, BMVC 2018",
    family="perturbation",
    means="How likely the class is on average when a pixel is visible and random other parts are not.",
    does_not_mean="The mean over all masks is part of every pixel's value, so only differences say something. Few "
    "masks leave noise, and masked pictures are unlike those that the model was trained on.",
    needs={"probe"},
    forwards=501,
    class_specific=True,
)
def rise(
    trace: Trace,
    *,
    samples: Samples = 500,
    cells: Annotated[int, Range(1, 256)] = 7,
    kept: Annotated[float, Range(0.01, 1.0)] = 0.5,
    seed: Seed = 0,
) -> Attribution:
    """Random soft masks over the picture, averaged by how likely the class stays under each.

    ``map = 1/(N p) Σ_k y(x ⊙ M_k) M_k`` at the pixels, (B, H, W), y a softmax probability. A mask is a grid of
    ``cells`` by ``cells`` ones (with probability p, ``kept``) and zeros, enlarged bilinearly to one cell more than the
    picture and cut out at a random place. The pixels are normalised ones, so masked parts fade to the mean colour of
    the preprocessing, as in the authors' code. The map has a large constant part, the mean of y: read differences.

    ``samples``: N. The paper takes 4000 (VGG16) and 8000 (ResNet50); the default answers in an eighth of the
    time of 4000, with nearly three times its noise. One forward a mask; the same masks for every image.
    """
    pixels = trace.pixels
    masks = _Masks(samples, cells, kept, seed, (int(pixels.shape[2]), int(pixels.shape[3])))
    weighted = torch.zeros(len(pixels), *pixels.shape[2:], dtype=torch.float32, device=pixels.device)
    mean = torch.zeros(len(pixels), dtype=torch.float32, device=pixels.device)
    for image, rows, alone in turns(trace, [chunked(trace, samples)] * len(pixels)):
        some = masks.some(rows).to(pixels.device)
        y = alone.probe(pixels[image] * some.to(pixels.dtype).unsqueeze(1))
        weighted[image] += torch.einsum("n,nhw->hw", y, some)
        mean[image] += y.sum()
    return Attribution(weighted / (samples * kept), {"mean_score": mean / samples})


class _Masks:
    """N random masks (H, W), made a few at a time: the enlarged grid is two small matrix products away."""

    def __init__(self, samples: int, cells: int, kept: float, seed: int, size: tuple[int, int]) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.grids = (torch.rand(samples, cells, cells, generator=generator) < kept).float()
        self.sides = []
        for side in size:
            cell = -(-side // cells)
            enlarged = F.interpolate(
                torch.eye(cells, dtype=torch.float32).unsqueeze(0),
                size=(cells + 1) * cell,
                mode="linear",
                align_corners=False,
            )
            shifts = torch.randint(cell, (samples, 1), generator=generator)
            self.sides.append((enlarged[0].T, shifts + torch.arange(side)))

    def some(self, rows: Tensor) -> Tensor:
        """(rows, H, W)."""
        (down, tops), (across, lefts) = self.sides
        return down[tops[rows]] @ self.grids[rows] @ across[lefts[rows]].transpose(1, 2)
