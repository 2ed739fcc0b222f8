"""Relevance as pictures and words. Only here is relevance normalised; what is kept and compared stays raw."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .errors import ImageError, OptionError, near
from .paper import GAP, INK, PAPER, SOFT, Picture, Sheet, as_image, get_font, resized

UNSIGNED_COLORMAP = "inferno"
SIGNED_COLORMAP = "RdBu_r"
STRIP_PIXELS = 2**20  # what is worked on at a time, so that a large photo needs no large floats
LONGEST, SHORTEST, ENLARGED = 640, 48, 320  # a panel's longest side, its shortest, and what tiny photos grow to

# The share of a map's places that may all be shown as the strongest, and how far the strongest may be cut for it.
PEAKS, CLIPPED = 0.02, 4

# Half of an even map's relevance needs half of its area. Beyond this share no place can be called special.
EVEN_SHARE = 0.4
# Half of the relevance within this distance of its centre, in picture sides, is one place; further apart, several.
ONE_PLACE = 0.2
REGIONS = (
    ("upper left", "upper middle", "upper right"),
    ("middle left", "centre", "middle right"),
    ("lower left", "lower middle", "lower right"),
)


def normalise(relevance: NDArray[np.floating], signed: bool) -> NDArray[np.float32]:
    """Each map (..., gh, gw) to [0, 1] for display.

    Unsigned: ``min(1, (r - min r) / s)``, zeros where the map is constant. Signed: ``0.5 + 0.5 r / s``, clipped, so
    that zero relevance is 0.5. s is what the strongest 2 % of places reach, and at least a quarter of what the
    strongest does: a few peaks should not hide the rest, nor noise beside a single peak look like relevance. Maps of
    fewer than 51 places lose nothing to it. Raises ImageError for values that are not finite.
    """
    values = np.asarray(relevance, dtype=np.float64)
    if values.ndim < 2 or 0 in values.shape:
        raise ImageError(f"relevance must have shape (maps, rows, columns) with no side empty, not {values.shape}")
    if not np.isfinite(values).all():
        raise ImageError("relevance has values that are not finite; explain in float32 or with another method")
    low = np.zeros(1) if signed else values.min((-2, -1), keepdims=True)
    size = np.abs(values - low)
    reached = np.quantile(size, 1 - PEAKS, (-2, -1), method="higher", keepdims=True)
    span = np.maximum(reached, size.max((-2, -1), keepdims=True) / CLIPPED)
    scaled = np.divide(values - low, span, out=np.zeros_like(values), where=span > 0).clip(-1, 1)
    return (0.5 + 0.5 * scaled if signed else scaled).astype(np.float32)


@functools.lru_cache(maxsize=32)
def _table(name: str) -> NDArray[np.uint8]:
    """A colormap's 256 colours, (256, 3)."""
    import matplotlib

    if name not in matplotlib.colormaps:
        raise OptionError(f"unknown colormap {name!r}; {near(name, matplotlib.colormaps)}")
    return np.rint(matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)


def colormap_for(signed: bool, colormap: str | None = None) -> str:
    """The name given, or the default: even in lightness (unsigned), or two hues that every eye tells apart (signed)."""
    return colormap or (SIGNED_COLORMAP if signed else UNSIGNED_COLORMAP)


def colorize(heat: NDArray[np.floating], colormap: str = UNSIGNED_COLORMAP) -> NDArray[np.uint8]:
    """Heat (H, W) in [0, 1] as colours (H, W, 3), from any of matplotlib's colormaps."""
    table = _table(colormap)
    out = np.empty((*heat.shape, 3), np.uint8)
    for rows in _strips(heat.shape[0], heat.shape[1]):
        out[rows] = table[_steps(heat[rows])]
    return out


def _steps(heat: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8)


def _strips(height: int, width: int) -> Iterable[slice]:
    step = max(1, STRIP_PIXELS // width)
    return (slice(top, top + step) for top in range(0, height, step))


def overlay(
    photo: NDArray[np.uint8],
    heat: NDArray[np.floating],
    signed: bool,
    colormap: str | None = None,
    opacity: float = 0.7,
) -> NDArray[np.uint8]:
    """``photo + alpha (colour - photo)`` with ``alpha = opacity * h``, or ``opacity * |2h - 1|`` where signed.

    ``photo`` is (H, W, 3), ``heat`` (H, W) in [0, 1] as ``normalise`` gives it, on the photo's own pixels. Where
    relevance is zero the photo stays as it is, byte for byte; it is never darkened to make the colours stand out.
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or heat.shape != photo.shape[:2]:
        raise ImageError(f"overlay needs a uint8 photo (H, W, 3) and heat (H, W), not {photo.shape} and {heat.shape}")
    if not 0 <= opacity <= 1:
        raise OptionError(f"opacity must be between 0 and 1, not {opacity}")
    table = _table(colormap_for(signed, colormap)).astype(np.float32)
    out = np.empty_like(photo)
    for rows in _strips(*heat.shape):
        h = np.clip(heat[rows], 0, 1).astype(np.float32)
        alpha = opacity * (np.abs(2 * h - 1) if signed else h)[:, :, None]
        below = photo[rows].astype(np.float32)
        out[rows] = np.rint(below + alpha * (table[_steps(h)] - below)).astype(np.uint8)
    return out


def side_by_side(
    photo: NDArray[np.uint8],
    heat: NDArray[np.floating],
    signed: bool,
    title: str = "",
    captions: tuple[str, str, str] = ("picture", "relevance", "overlay"),
    colormap: str | None = None,
    opacity: float = 0.7,
    seen_box: tuple[float, float, float, float] | None = None,
    of_class: bool = True,
) -> Image.Image:
    """Photo, map with its colour bar, and overlay in a row, each at most 640 pixels long.

    Takes what ``overlay`` takes. ``seen_box`` (left, top, right, bottom) in photo pixels frames what the model saw, if
    that is not the whole. ``of_class``: as in ``describe``. Long thin photos are widened to stay visible, and the
    caption says so.
    """
    name = colormap_for(signed, colormap)
    size, stretched = _panel_size(photo.shape[1], photo.shape[0])
    small = np.asarray(resized(Image.fromarray(photo), size))
    warm = np.clip(np.asarray(resized(Image.fromarray(heat.astype(np.float32)), size, smooth=True)), 0, 1)
    panels = [Image.fromarray(a) for a in (small, colorize(warm, name), overlay(small, warm, signed, name, opacity))]
    if seen_box is not None:
        scale = size[0] / photo.shape[1], size[1] / photo.shape[0]
        for panel in panels:
            _frame(panel, seen_box, scale)
    bar = _colour_bar(name, signed, of_class, min(max(size[1], 120), 320))
    width, height = max(size[0], 190), max(size[1], bar.height)
    sheet = Sheet(3 * width + 5 * GAP + bar.width, height, title, caption_lines=1)
    note = " (not to scale)" if stretched else ""
    for number, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        x = GAP + number * (width + GAP) + (bar.width + GAP if number == 2 else 0)
        sheet.place(panel, caption + note, x, width, height)
    sheet.place(bar, "", 2 * (width + GAP) + GAP, bar.width, height)
    return sheet.image


def _panel_size(width: int, height: int) -> tuple[tuple[int, int], bool]:
    """(width, height) of a panel, and whether a side had to be stretched to stay visible."""
    longest = max(width, height)
    scale = min(LONGEST / longest, max(1.0, ENLARGED / longest))
    exact = round(width * scale), round(height * scale)
    size = max(exact[0], SHORTEST), max(exact[1], SHORTEST)
    return size, size != exact


def _frame(panel: Image.Image, box: tuple[float, float, float, float], scale: tuple[float, float]) -> None:
    left, top = round(box[0] * scale[0]), round(box[1] * scale[1])
    right, bottom = round(box[2] * scale[0]) - 1, round(box[3] * scale[1]) - 1
    if (left, top, right, bottom) == (0, 0, panel.width - 1, panel.height - 1):
        return
    draw = ImageDraw.Draw(panel)
    right, bottom = max(right, left + 2), max(bottom, top + 2)
    # A dark and a light line beside each other show on any photo.
    draw.rectangle((left, top, right, bottom), outline=(0, 0, 0))
    draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=(255, 255, 255))


def _colour_bar(colormap: str, signed: bool, of_class: bool, height: int) -> Image.Image:
    poles = ("for", "none", "against") if of_class else ("above 0", "0", "below 0")
    names = poles if signed else ("high", "low")
    font = get_font(14)
    reach = max(font.getlength(n) for n in names)
    image = Image.new("RGB", (18 + 8 + round(reach) + 1, height), PAPER)
    image.paste(Image.fromarray(colorize(np.repeat(np.linspace(1, 0, height)[:, None], 18, 1), colormap)), (0, 0))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 17, height - 1), outline=SOFT)
    for number, name in enumerate(names):
        where = number / (len(names) - 1)
        draw.text((26, 8 + where * (height - 16)), name, fill=INK, font=font, anchor="lm")
    return image


def gif(frames: Sequence[Picture], seconds_per_frame: float = 0.5) -> bytes:
    """An endless animation of pictures of one size. GIF counts time in hundredths of a second."""
    pictures = [as_image(f) for f in frames]
    if not pictures or len({p.size for p in pictures}) > 1:
        raise ImageError("an animation needs at least one frame, and all frames of one size")
    if not 0.02 <= seconds_per_frame <= 600:
        raise OptionError(f"seconds_per_frame must be between 0.02 and 600, not {seconds_per_frame}")
    palettes = [p.quantize(256) for p in pictures]
    file = io.BytesIO()
    duration = round(seconds_per_frame * 100) * 10
    palettes[0].save(file, "GIF", save_all=True, append_images=palettes[1:], duration=duration, loop=0)
    return file.getvalue()


def png(picture: Picture) -> bytes:
    """A picture as the bytes of a PNG file."""
    file = io.BytesIO()
    as_image(picture).save(file, "PNG")
    return file.getvalue()


def describe(relevance: NDArray[np.floating], signed: bool, of_class: bool = True) -> str:
    """One sentence about a map (gh, gw): where the strongest half of its relevance lies, and how concentrated that is.

    Unsigned relevance counts from zero, or from its least value if that is below zero; signed relevance by magnitude.
    ``of_class``: whether the map is about a class, or another target; if it is signed, the shares that speak for and
    against the target are named.
    """
    values = np.asarray(relevance, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ImageError(f"a description needs one finite map (rows, columns), not shape {values.shape}")
    weight = np.abs(values) if signed else values - min(0.0, float(values.min()))
    total = weight.sum()
    if total == 0:
        return "There is no relevance anywhere."
    order = np.argsort(weight, axis=None, kind="stable")[::-1]
    half = order[: int(np.searchsorted(np.cumsum(weight.ravel()[order]), total / 2)) + 1]
    share = len(half) / weight.size
    if share > EVEN_SHARE:
        where = "Relevance is spread evenly: no single place stands out"
    else:
        top = np.zeros_like(weight)
        top.flat[half] = weight.flat[half]
        where = f"Relevance lies {_place(top / top.sum())}; half of it is within {_percent(share)} of the image"
    if signed and of_class:
        speaks_for = np.maximum(values, 0).sum() / total
        where += f"; {_percent(speaks_for)} of it speaks for the target and {_percent(1 - speaks_for)} against"
    return where + "."


def _place(top: NDArray[np.float64]) -> str:
    """Where weights (gh, gw) that sum to one lie, in a division of the picture into three by three regions."""
    y, x = ((np.arange(n) + 0.5) / n for n in top.shape)
    centre_y, centre_x = (top.sum(1) * y).sum(), (top.sum(0) * x).sum()
    distance = (top * ((y - centre_y)[:, None] ** 2 + (x - centre_x)[None] ** 2)).sum() ** 0.5
    if distance <= ONE_PLACE:
        return f"mostly in {_region(3 * int(centre_y * 3) + int(centre_x * 3))}"
    # The centre between two distant places would name a place where nothing is.
    row, column = (y * 3).astype(int)[:, None], (x * 3).astype(int)[None]
    held = np.bincount((row * 3 + column).ravel(), top.ravel(), minlength=9)
    first = int(held.argmax())
    # Weighed by distance, else the second place would be a neighbour that the first one spills into.
    apart = (np.arange(9) // 3 - first // 3) ** 2 + (np.arange(9) % 3 - first % 3) ** 2
    second = int((held * apart).argmax())
    return f"in several places, above all {_region(first)} and {_region(second)}"


def _region(number: int) -> str:
    return f"the {REGIONS[number // 3][number % 3]}"


def _percent(share: float) -> str:
    return "under 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"
