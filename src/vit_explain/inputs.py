"""What a caller gives to be explained, as pixels, and what is kept of each image to put its map back onto it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import ImageError
from .image import Geometry, Preprocessing, denormalise, prepare
from .inquiry import finite
from .photos import load_image

TENSOR = "tensor"  # the source of images that came preprocessed


@dataclass(eq=False)
class Inputs:
    """B images: pixels (B, C, H, W) as the model takes them, and each as the viewer sees it."""

    pixels: Tensor
    photos: list[NDArray[np.uint8]]
    geometries: list[Geometry]
    sources: list[str]


def read(images: Any, preprocessing: Preprocessing, max_pixels: int) -> Inputs:
    """A path, picture or array, a list of these, or a preprocessed tensor; see ``Explainer.explain``."""
    if isinstance(images, Tensor):
        pixels = checked_pixels(images)
        height, width = pixels.shape[2:]
        photos = [denormalise(one.float().cpu().numpy(), preprocessing.mean, preprocessing.std) for one in pixels]
        geometries = [Geometry.identity(height, width)] * len(pixels)
        return Inputs(pixels, photos, geometries, [TENSOR] * len(pixels))
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = list(images)
    if not isinstance(images, (list, tuple)):
        images = [images]
    if not images:
        raise ImageError("there are no images to explain")
    pictures = [load_image(source, max_pixels) for source in images]
    ready = [prepare(picture, preprocessing) for picture in pictures]
    return Inputs(
        pixels=torch.from_numpy(np.stack([pixels for pixels, _ in ready])),
        photos=[np.asarray(picture) for picture in pictures],
        geometries=[geometry for _, geometry in ready],
        sources=[str(source) if isinstance(source, (str, Path)) else type(source).__name__ for source in images],
    )


def checked_pixels(pixels: Tensor) -> Tensor:
    """(B, C, H, W), detached, from (C, H, W) or (B, C, H, W); an error for what is no picture."""
    if not isinstance(pixels, Tensor) or pixels.layout != torch.strided:
        kind = f"a tensor of layout {pixels.layout}" if isinstance(pixels, Tensor) else type(pixels).__name__
        raise ImageError(f"what is explained here is a dense tensor of preprocessed pixels, not {kind}")
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(0)
    if pixels.ndim != 4 or not pixels.is_floating_point() or not len(pixels):
        raise ImageError(
            f"a preprocessed tensor is (B, C, H, W) floating point, not {tuple(pixels.shape)} {pixels.dtype}"
        )
    if not finite(pixels):
        raise ImageError("the pixels are not finite (NaN or infinity)")
    return pixels.detach()
