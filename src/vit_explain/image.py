"""Geometry: an RGB picture becomes what a model is fed, and maps find their way back onto the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import ImageError, OptionError, near

# Above this many pixels the resized picture is never made whole: only the part that the model sees is.
WHOLE_RESIZE_PIXELS = 2**24

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its pictures, in the words of timm's data configuration.

    ``size`` is (h, w) in pixels; ``mean`` and ``std`` are per RGB channel for pixels in [0, 1]. The picture is resized
    to ``resize``, (h, w) in pixels, or else to ``size / crop_pct``, rounded down, and cut or padded to ``size``:
    ``center`` fits the shorter side (the rest is cut off), ``squash`` fits both sides (the shape changes), ``border``
    fits the longer side (mean colour fills the rest).
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"
    resize: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise OptionError(f"size must be a height and a width of at least one pixel, not {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise OptionError(
                f"mean and std must be three numbers each, std above zero, not {self.mean} and {self.std}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise OptionError(
                f"unknown interpolation {self.interpolation!r}; {near(self.interpolation, INTERPOLATIONS)}"
            )
        if self.crop_mode not in CROP_MODES:
            raise OptionError(f"unknown crop_mode {self.crop_mode!r}; {near(self.crop_mode, CROP_MODES)}")
        if not 0 < self.crop_pct < math.inf:
            raise OptionError(f"crop_pct must be above zero, usually between 0.8 and 1, not {self.crop_pct}")
        if self.resize is not None and (len(self.resize) != 2 or min(self.resize) < 1 or self.crop_pct != 1):
            raise OptionError(
                f"resize must be a height and a width of at least one pixel, in place of crop_pct, not {self.resize} "
                f"beside crop_pct={self.crop_pct:g}"
            )

    @property
    def resized(self) -> tuple[int, int]:
        """Pixels (h, w) that the picture is fitted to before it is cut."""
        if self.resize is not None:
            return self.resize
        return math.floor(self.size[0] / self.crop_pct), math.floor(self.size[1] / self.crop_pct)

    @property
    def black(self) -> tuple[float, ...]:
        """What a black pixel becomes, one number a channel."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))


@dataclass(frozen=True)
class Geometry:
    """Where each pixel of the picture went in the model's input; all pairs are (vertical, horizontal), in pixels.

    ``input = original * resized_size / original_size - offset`` in continuous coordinates (a pixel's centre is at one
    half). A negative offset is padding; where ``offset + input`` ends before ``resized``, that part was cut off.
    """

    original: tuple[int, int]
    input: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]

    @classmethod
    def identity(cls, h: int, w: int) -> Geometry:
        """The picture is the input: nothing was resized, cut or padded."""
        return cls((h, w), (h, w), (h, w), (0, 0))

    @property
    def seen_box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of what the model saw, in pixels of the original picture."""
        (top, bottom), (left, right) = self._seen(0), self._seen(1)
        return left, top, right, bottom

    @property
    def seen_share(self) -> float:
        """Share of the picture's area that the model saw, in (0, 1]."""
        left, top, right, bottom = self.seen_box
        return (right - left) * (bottom - top) / (self.original[0] * self.original[1])

    def _seen(self, axis: int) -> tuple[float, float]:
        scale = self.original[axis] / self.resized[axis]
        first, last = max(self.offset[axis], 0), min(self.offset[axis] + self.input[axis], self.resized[axis])
        return first * scale, min(last * scale, float(self.original[axis]))

    def to_original(
        self, maps: NDArray[np.floating], interpolation: str = "bilinear", outside: float = 0.0
    ) -> NDArray[np.float32]:
        """Maps (R, gh, gw) on a grid that covers the input, as maps (R, H, W) on the original picture.

        Every original pixel's centre is looked up in the grid: ``nearest`` gives its cell's value, ``bilinear`` mixes
        the four nearest cell centres (edges clamped). Pixels that the model did not see get ``outside``.
        """
        maps = np.asarray(maps, dtype=np.float32)
        if maps.ndim != 3 or 0 in maps.shape:
            raise ImageError(f"maps must have shape (maps, rows, columns) with no side empty, not {maps.shape}")
        if interpolation not in ("bilinear", "nearest"):
            raise OptionError(f"unknown interpolation {interpolation!r}; known: bilinear, nearest")
        (rows, down), (columns, across) = self._cells(0, maps.shape[1]), self._cells(1, maps.shape[2])
        out = np.full((len(maps), *self.original), outside, dtype=np.float32)
        if interpolation == "nearest":
            cells_down = np.clip(np.floor(down).astype(int), 0, maps.shape[1] - 1)
            cells_across = np.clip(np.floor(across).astype(int), 0, maps.shape[2] - 1)
            out[:, rows, columns] = maps[:, cells_down][:, :, cells_across]
            return out
        weights_down, weights_across = _linear(down, maps.shape[1]), _linear(across, maps.shape[2])
        for one, target in zip(maps, out, strict=True):  # one at a time: no second copy of all the large maps
            target[rows, columns] = weights_down @ one @ weights_across.T
        return out

    def _cells(self, axis: int, cells: int) -> tuple[slice, NDArray[np.float64]]:
        """The original pixels along an axis that were seen (they are neighbours), and where they lie in cell units."""
        centres = np.arange(self.original[axis], dtype=np.float64) + 0.5
        where = centres * (self.resized[axis] / self.original[axis]) - self.offset[axis]
        seen = np.flatnonzero((where >= 0) & (where < self.input[axis]))
        span = slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, 0)
        return span, where[span] * (cells / self.input[axis])

    def as_dict(self) -> dict[str, list[int]]:
        """Plain lists of integers, for JSON."""
        return {name: list(pair) for name, pair in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Sequence[int]]) -> Geometry:
        """What ``as_dict`` gave; ImageError where it is not that."""
        try:
            pairs = {name: (int(data[name][0]), int(data[name][1])) for name in cls.__dataclass_fields__}
        except (KeyError, IndexError, TypeError, ValueError):
            raise ImageError("a geometry needs two integers each for original, input, resized and offset") from None
        if any(min(pairs[name]) < 1 for name in ("original", "input", "resized")):
            raise ImageError("a geometry's sizes must be at least one pixel")
        return cls(**pairs)


def _linear(where: NDArray[np.float64], cells: int) -> NDArray[np.float32]:
    """Weights (n, cells) that mix the two cells whose centres enclose each position; every row sums to one."""
    position = np.clip(where - 0.5, 0, cells - 1)
    first = np.minimum(position.astype(int), max(cells - 2, 0))
    share = (position - first).astype(np.float32)
    weights = np.zeros((len(where), cells), dtype=np.float32)
    row = np.arange(len(where))
    weights[row, first] = 1 - share
    if cells > 1:
        weights[row, first + 1] = share
    return weights


def plan(original: tuple[int, int], preprocessing: Preprocessing) -> Geometry:
    """Geometry of a picture of (H, W) pixels under a preprocessing, rounded just as timm and torchvision round."""
    (height, width), (h, w), goal = original, preprocessing.size, preprocessing.resized
    if preprocessing.crop_mode == "squash":
        resized = goal
    elif preprocessing.crop_mode == "center" and goal[0] == goal[1]:
        longer = int(goal[0] * max(original) / min(original))
        resized = (longer, goal[0]) if width <= height else (goal[0], longer)
    else:
        choose = max if preprocessing.crop_mode == "border" else min
        ratio = choose(height / goal[0], width / goal[1])
        # Rounding a very thin picture's shorter side could give zero pixels.
        resized = max(1, round(height / ratio)), max(1, round(width / ratio))
    # A side that is padded has half of the padding, rounded down, before it.
    top, left = (round((r - s) / 2) if r >= s else -((s - r) // 2) for r, s in zip(resized, (h, w), strict=True))
    return Geometry(original, (h, w), resized, (top, left))


def prepare(image: Image.Image, preprocessing: Preprocessing) -> tuple[NDArray[np.float32], Geometry]:
    """What the model is fed, (3, h, w) with ``(pixel / 255 - mean) / std``, and the way back to the RGB picture.

    The same bytes as timm's evaluation transform. Only for pictures so long and thin that the resized picture would
    have more than ``WHOLE_RESIZE_PIXELS`` is the seen part resampled alone, which rounds slightly differently.
    """
    if image.mode != "RGB":
        raise ImageError(f"the picture has mode {image.mode}; load_image() turns any picture into RGB")
    geometry = plan((image.height, image.width), preprocessing)
    colour = [round(255 * m) for m in preprocessing.mean] if preprocessing.crop_mode == "border" else [0, 0, 0]
    seen = _resample(image, geometry, INTERPOLATIONS[preprocessing.interpolation], (colour[0], colour[1], colour[2]))
    pixels = np.asarray(seen, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    mean, std = (np.array(v, dtype=np.float32).reshape(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return np.ascontiguousarray((pixels - mean) / std), geometry


def _resample(
    image: Image.Image, geometry: Geometry, resample: Image.Resampling, colour: tuple[int, int, int]
) -> Image.Image:
    (h, w), (rh, rw), (top, left) = geometry.input, geometry.resized, geometry.offset
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + w, rw), min(top + h, rh)
    if rh * rw <= WHOLE_RESIZE_PIXELS:
        piece = image.resize((rw, rh), resample).crop((x0, y0, x1, y1))
    else:
        # Pillow looks at pixels around the box too, so this is resizing and then cropping without the whole between.
        sx, sy = image.width / rw, image.height / rh
        box = x0 * sx, y0 * sy, min(x1 * sx, image.width), min(y1 * sy, image.height)
        piece = image.resize((x1 - x0, y1 - y0), resample, box=box)
    if piece.size == (w, h):
        return piece
    canvas = Image.new("RGB", (w, h), colour)
    canvas.paste(piece, (x0 - left, y0 - top))
    return canvas


def denormalise(pixels: NDArray[np.floating], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """Model input (C, h, w) back to a picture (h, w, 3): ``255 * (pixels * std + mean)``, rounded and clipped.

    Inputs of other than three channels are shown as the mean of their channels, stretched from black to white.
    """
    pixels = np.asarray(pixels, dtype=np.float32)
    if pixels.ndim != 3:
        raise ImageError(f"model input must have shape (channels, height, width), not {pixels.shape}")
    if pixels.shape[0] != 3:
        # Not a colour picture: what its channels mean is not known, so it is shown as their mean, dark to bright.
        grey = pixels.mean(0)
        span = float(grey.max() - grey.min()) or 1.0
        return np.repeat(np.rint((grey - grey.min()) / span * 255).astype(np.uint8)[..., None], 3, 2)
    picture = pixels.transpose(1, 2, 0) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return np.rint(np.clip(np.nan_to_num(picture), 0, 1) * 255).astype(np.uint8)
