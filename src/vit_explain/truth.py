"""Where the object is: boxes and masks on the original picture, brought to what the model sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import ImageError
from .image import Geometry

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the original picture, upright


@dataclass(frozen=True)
class Truth:
    """Boxes around the object, or a picture of the size of the original that is not black where the object is."""

    boxes: tuple[Box, ...] = ()
    mask: Path | None = None

    def seen(self, geometry: Geometry) -> NDArray[np.bool_]:
        """(h, w) booleans at the pixels of the model's input: whether the nearest original pixel is of the object."""
        mask = _read(self.mask, geometry.original) if self.mask else _filled(self.boxes, geometry.original)
        (rows, down), (columns, across) = (_nearest(geometry, axis) for axis in (0, 1))
        found = np.zeros(geometry.input, dtype=bool)
        found[np.ix_(rows, columns)] = mask[np.ix_(down, across)]
        return found


def _nearest(geometry: Geometry, axis: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The input's pixels along an axis that show the picture, and which of the picture's pixels each shows."""
    centres = np.arange(geometry.input[axis]) + 0.5 + geometry.offset[axis]
    where = np.floor(centres * geometry.original[axis] / geometry.resized[axis]).astype(int)
    inside = np.flatnonzero((where >= 0) & (where < geometry.original[axis]))
    return inside, where[inside]


def _filled(boxes: Sequence[Box], size: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(size, dtype=bool)
    for left, top, right, bottom in boxes:
        mask[max(0, round(top)) : max(0, round(bottom)), max(0, round(left)) : max(0, round(right))] = True
    return mask


def _read(file: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    try:
        with Image.open(file) as picture:
            mask = np.asarray(picture.convert("L")) > 0
    except (OSError, ValueError) as error:
        raise ImageError(f"the mask {file} cannot be read: {error}") from None
    if mask.shape != size:
        raise ImageError(f"the mask {file} has {mask.shape} pixels (height, width), and its picture {size}")
    return mask
