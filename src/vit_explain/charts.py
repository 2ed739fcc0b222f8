"""Pictures of many maps at once: a gallery with a caption under each, a table with labels, and a matrix of correlations
with its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .errors import ImageError
from .paper import GAP, INK, PAPER, SOFT, Picture, Sheet, as_image, broken, get_font, longer_side, resized
from .render import SIGNED_COLORMAP, colorize

LINE = 18  # height of a line of a caption
NOTHING = (236, 237, 239)  # a cell without a number


def gallery(
    pictures: Sequence[Picture], captions: Sequence[tuple[str, str]], title: str = "", cell: int = 200
) -> Image.Image:
    """Pictures in rows, each with its name and a word about it below; their size: see ``longer_side``."""
    shown = [as_image(picture) for picture in pictures]
    fits = [longer_side(picture.size, cell) / max(picture.size) for picture in shown]
    sizes = [
        (max(1, round(picture.width * fit)), max(1, round(picture.height * fit)))
        for picture, fit in zip(shown, fits, strict=True)
    ]
    font, small = get_font(15), get_font(13)
    # No name is cut off: columns are as wide as the widest of them.
    words = [get.getlength(word) for caption in captions for get, word in zip((font, small), caption, strict=True)]
    width, height = max(math.ceil(max(words)), *(w for w, _ in sizes)), max(h for _, h in sizes)
    columns = _columns(len(shown), width, height + 2 * LINE)
    rows = -(-len(shown) // columns)
    step = height + 2 * LINE + GAP
    sheet = Sheet(GAP + columns * (width + GAP), rows * step - GAP, title, 0)
    for number, (picture, size) in enumerate(zip(shown, sizes, strict=True)):
        x, y = GAP + number % columns * (width + GAP), sheet.top + number // columns * step
        sheet.image.paste(resized(picture, size), (x + (width - size[0]) // 2, y + height - size[1]))
        name, word = captions[number]
        sheet.draw.text((x + width / 2, y + height + 4), name, fill=INK, font=font, anchor="ma")
        sheet.draw.text((x + width / 2, y + height + 4 + LINE), word, fill=SOFT, font=small, anchor="ma")
    return sheet.image


def _columns(count: int, width: int, height: int) -> int:
    """So many that the whole is about half as wide again as high; a few stand in one row."""
    return count if count <= 6 else min(count, math.ceil(math.sqrt(1.5 * count * height / width)))


def grid(
    cells: Sequence[Sequence[Picture | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str | None = None,
    cell: int = 200,
) -> Image.Image:
    """A labelled table of pictures, each fitted into an equal cell (see ``longer_side``); None leaves a gap."""
    rows = [[as_image(c) if c is not None else None for c in row] for row in cells]
    shown = [c for row in rows for c in row if c is not None]
    if not shown:
        raise ImageError("a grid needs at least one picture")
    cell = max(longer_side(c.size, cell) for c in shown)
    tall = max(c.height / max(c.size) for c in shown)
    wide = max(c.width / max(c.size) for c in shown)
    w, h = max(48, round(cell * wide)), max(48, round(cell * tall))
    font, gap = get_font(14), 8
    above = [broken(label, font, w, 3) for label in column_labels]
    beside = [broken(label, font, 150, max(1, h // LINE)) for label in row_labels]
    left = GAP + (round(max(font.getlength(t) for lines in beside for t in lines)) + 12 if any(beside) else 0)
    columns = max(len(row) for row in rows)
    head = max((len(lines) for lines in above), default=0) * LINE
    sheet = Sheet(left + columns * (w + gap) - gap + GAP, head + len(rows) * (h + gap) - gap - 8, title or "", 0)
    for number, lines in enumerate(above[:columns]):
        for line, text in enumerate(lines):
            y = sheet.top + head - LINE * (len(lines) - line) - 4
            sheet.draw.text((left + number * (w + gap) + w / 2, y), text, fill=INK, font=font, anchor="ma")
    for number, row in enumerate(rows):
        y = sheet.top + head + number * (h + gap)
        for line, text in enumerate(beside[number] if number < len(beside) else []):
            middle = y + h / 2 + LINE * (line - (len(beside[number]) - 1) / 2)
            sheet.draw.text((left - 12, middle), text, fill=INK, font=font, anchor="rm")
        for column, picture in enumerate(row):
            if picture is not None:
                fit = min(w / picture.width, h / picture.height)
                size = max(1, round(picture.width * fit)), max(1, round(picture.height * fit))
                x = left + column * (w + gap)
                sheet.image.paste(resized(picture, size), (x + (w - size[0]) // 2, y + (h - size[1]) // 2))
    return sheet.image


def matrix(
    values: NDArray[np.floating], names: Sequence[str], title: str = "", note: str = "", reach: float = 1.0
) -> Image.Image:
    """Values (M, M) from -reach to reach as colours with their numbers, the names beside rows and above columns.

    NaN is a dash. ``note``: a line below.
    """
    font, small = get_font(14), get_font(12)
    count = len(names)
    cell = min(64, max(42, 480 // count))
    reserve = math.ceil(max(font.getlength(name) for name in names)) + 10
    side = reserve + count * cell
    width = max(side + 2 * GAP, 560)
    notes = broken(note, font, width - 2 * GAP, 3)
    sheet = Sheet(width, side + 8 + LINE * len(notes), title, 0)
    left, top = GAP + reserve, sheet.top + reserve
    known = np.isfinite(values)
    colours = colorize(np.where(known, values / reach, 0) / 2 + 0.5, SIGNED_COLORMAP)
    for row in range(count):
        middle = top + row * cell + cell / 2
        sheet.draw.text((left - 8, middle), names[row], fill=INK, font=font, anchor="rm")
        sheet.image.paste(_upright(names[row], font, reserve - 8), (left + row * cell + (cell - LINE) // 2, sheet.top))
        for column in range(count):
            x, y = left + column * cell, top + row * cell
            colour = tuple(int(part) for part in colours[row, column]) if known[row, column] else NOTHING
            sheet.draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=colour)
            text = f"{values[row, column]:.2f}" if known[row, column] else "–"
            ink = PAPER if _luminance(colour) < 128 else INK
            sheet.draw.text((x + cell / 2 - 1, middle - 1), text, fill=ink, font=small, anchor="mm")
    for number, line in enumerate(notes):
        sheet.draw.text((GAP, sheet.top + side + 8 + number * LINE), line, fill=SOFT, font=font)
    return sheet.image


def _upright(text: str, font: Any, length: int) -> Image.Image:
    """The text turned to be read upwards, beginning at the lower end of a strip of this length."""
    strip = Image.new("RGB", (length, LINE), PAPER)
    ImageDraw.Draw(strip).text((0, LINE / 2), text, fill=INK, font=font, anchor="lm")
    return strip.transpose(Image.Transpose.ROTATE_90)


def _luminance(colour: tuple[int, ...]) -> float:
    return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]
