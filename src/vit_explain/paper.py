"""Pictures and words on white paper: fonts, lines that fit, and a sheet with a title and captions."""

from __future__ import annotations

import bisect
import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = Image.Image | NDArray[np.uint8]

PAPER, INK, SOFT = (255, 255, 255), (32, 33, 36), (110, 114, 120)
GAP = 16


def resized(image: Image.Image, size: tuple[int, int], smooth: bool = False) -> Image.Image:
    # Greatly enlarged photos keep their pixels visible, as the model had no more than these.
    tiny = size[0] >= 3 * image.width or size[1] >= 3 * image.height
    kind = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST if tiny else Image.Resampling.LANCZOS
    return image.resize(size, kind)


def longer_side(size: tuple[int, int], cell: int) -> int:
    """Of a picture in a cell: ``cell``, or up to four times as much where else too little would be left of the other
    side."""
    return min(4 * cell, max(cell, round(cell * max(size) / (3 * min(size)))))


@functools.lru_cache(maxsize=16)
def get_font(size: int) -> Any:
    """Matplotlib's own font: Pillow's knows no letters beyond English ones, and class names may have them."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def broken(text: str, font: Any, width: float, most: int) -> list[str]:
    """The text in at most so many lines no wider than ``width``; what does not fit ends in dots."""
    lines: list[str] = []
    words = " ".join(str(text).split())[:400].split(" ")
    for word in words:
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        elif len(lines) < most:
            lines.append(word)
        else:
            lines[-1] += " ..."
            break
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: Any, width: float) -> str:
    if font.getlength(line) <= width:
        return line
    line = line.removesuffix(" ...")
    fits = bisect.bisect_right(range(1, len(line) + 1), width, key=lambda n: font.getlength(line[:n] + "..."))
    return line[:fits].rstrip() + "..."


class Sheet:
    """White paper with a title on top and a caption under every picture."""

    def __init__(self, width: int, height: int, title: str, caption_lines: int) -> None:
        title_font, self.font = get_font(20), get_font(15)
        lines = broken(title, title_font, width - 2 * GAP, 2) if title else []
        self.top = GAP + (len(lines) * 26 + 6 if lines else 0)
        self.image = Image.new("RGB", (width, self.top + height + 8 + caption_lines * 20 + GAP), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        for number, line in enumerate(lines):
            self.draw.text((GAP, GAP - 4 + number * 26), line, fill=INK, font=title_font)

    def place(self, picture: Image.Image, caption: str, x: int, width: int, height: int) -> None:
        self.image.paste(picture, (x + (width - picture.width) // 2, self.top + (height - picture.height) // 2))
        for line in broken(caption, self.font, width, 1):
            self.draw.text((x + width / 2, self.top + height + 8), line, fill=SOFT, font=self.font, anchor="ma")


def as_image(picture: Picture) -> Image.Image:
    return (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).convert("RGB")
