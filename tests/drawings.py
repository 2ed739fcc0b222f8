"""Pictures that the bundled model knows, drawn here because no free photos of its classes are at hand.

They are cartoons made of a few shapes, on plain ground; nothing was fitted to the model, but of ten that were tried
(one a class, each drawn once) only those are here that it answers rightly with more than 80 %. What maps of them show,
maps of photos may show less clearly: the metric ``grid_pointing`` measures on photos.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FINE = 896  # drawn at four times the size, so that edges are smooth
TEMPLE = Path(__file__).parents[1] / "examples" / "temple.jpg"
Colour = tuple[int, int, int]


def _sky(top: Colour, bottom: Colour) -> Image.Image:
    share = np.linspace(0, 1, FINE)[:, None, None] * np.ones((1, FINE, 1))
    return Image.fromarray((np.array(top) * (1 - share) + np.array(bottom) * share).astype(np.uint8))


def _box(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
    """In shares of the picture."""
    return left * FINE, top * FINE, right * FINE, bottom * FINE


def _round(x: float, y: float, across: float, down: float | None = None) -> tuple[float, float, float, float]:
    down = across if down is None else down
    return _box(x - across, y - down, x + across, y + down)


def golf_ball() -> Image.Image:
    """A white sphere with dimples, lit from the upper left, on grass."""
    noise = np.random.default_rng(0).normal(size=(FINE // 4, FINE // 8)) * 40 + 128
    blades = Image.fromarray(noise.clip(0, 255).astype(np.uint8)).resize((FINE, FINE), Image.Resampling.BICUBIC)
    picture = np.array([60, 120, 40]) + (np.asarray(blades, float)[..., None] - 128) * np.array([0.5, 0.8, 0.3])
    y, x = np.mgrid[:FINE, :FINE] / FINE
    picture *= 1 - 0.6 * np.exp(-(((x - 0.55) / 0.36) ** 2) - ((y - 0.82) / 0.08) ** 2)[..., None]  # shadow
    u, v = (x - 0.5) / 0.33, (y - 0.5) / 0.33
    ball = u**2 + v**2 < 1
    surface = np.stack([u, v, np.sqrt(np.clip(1 - u**2 - v**2, 0, None))], -1)[ball]
    # Centres of 300 dimples, spread evenly over the sphere by the golden angle.
    number = np.arange(300) + 0.5
    polar, around = np.arccos(1 - number / 150), np.pi * (1 + 5**0.5) * number
    centres = np.stack([np.cos(around) * np.sin(polar), np.sin(around) * np.sin(polar), np.cos(polar)], 1)
    nearness = surface @ centres.T
    nearest, within = centres[nearness.argmax(1)], nearness.max(1) > np.cos(0.095)
    normals = np.where(within[:, None], 1.6 * nearest - 0.6 * surface, surface)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    light = np.array([-0.4, -0.6, 0.7]) / np.linalg.norm([-0.4, -0.6, 0.7])
    picture[ball] = (70 + 175 * np.clip(normals @ light, 0, 1))[:, None]
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def parachute() -> Image.Image:
    """A striped canopy with lines to a jumper, against the sky."""
    picture = _sky((60, 120, 200), (170, 205, 240))
    draw = ImageDraw.Draw(picture)
    stripes = [(220, 40, 40), (245, 245, 245), (40, 60, 180), (245, 200, 40)]
    rim, reach, high, jumper = 0.462 * FINE, 0.36 * FINE, 0.342 * FINE, (0.5 * FINE, 0.86 * FINE)
    angles = np.linspace(0, np.pi / 2, 30)
    edges = np.linspace(-1, 1, 10)
    seams = [[(FINE / 2 + e * reach * np.sin(a), rim - high * np.cos(a)) for a in angles] for e in edges]
    for number, (left, right) in enumerate(itertools.pairwise(seams)):
        middle = ((left[-1][0] + right[-1][0]) / 2, rim - 0.03 * FINE)
        draw.polygon([*left, middle, *reversed(right)], fill=stripes[number % len(stripes)])
    for seam in seams:
        draw.line([seam[-1], jumper], fill=(40, 40, 40), width=3)
    draw.ellipse(_round(0.5, 0.867, 0.016), fill=(60, 40, 30))
    draw.rectangle(_box(0.48, 0.88, 0.52, 0.938), fill=(30, 30, 60))
    for side in (-1, 1):
        foot = (0.5 + 0.018 * side) * FINE, 0.988 * FINE
        draw.line([((0.5 + 0.011 * side) * FINE, 0.938 * FINE), foot], fill=(20, 20, 20), width=12)
    return picture


def gas_pump() -> Image.Image:
    """A red pump with two counters, a hose and a nozzle."""
    picture = _sky((190, 200, 210), (225, 225, 220))
    draw = ImageDraw.Draw(picture)
    large, small = ImageFont.load_default(size=60), ImageFont.load_default(size=34)
    draw.rectangle(_box(0, 0.85, 1, 1), fill=(120, 120, 118))
    draw.rounded_rectangle(_box(0.3, 0.12, 0.64, 0.86), 30, fill=(200, 30, 35), outline=(90, 10, 15), width=6)
    draw.rectangle(_box(0.333, 0.165, 0.607, 0.4), fill=(235, 235, 225), outline=(60, 60, 60), width=6)
    for top, text in ((0.187, "18.40"), (0.287, "12.75")):
        draw.rectangle(_box(0.356, top, 0.584, top + 0.078), fill=(25, 30, 25))
        draw.text((0.47 * FINE, (top + 0.039) * FINE), text, fill=(230, 240, 200), font=large, anchor="mm")
    draw.text((0.47 * FINE, 0.455 * FINE), "UNLEADED", fill=(255, 255, 255), font=small, anchor="mm")
    draw.rectangle(_box(0.367, 0.488, 0.573, 0.6), fill=(245, 200, 30))
    draw.text((0.47 * FINE, 0.544 * FINE), "GAS", fill=(20, 20, 20), font=large, anchor="mm")
    draw.rectangle(_box(0.289, 0.849, 0.651, 0.893), fill=(60, 60, 60))
    draw.arc(_box(0.573, 0.254, 0.852, 0.815), -80, 120, fill=(15, 15, 15), width=22)
    draw.rounded_rectangle(_box(0.636, 0.377, 0.685, 0.566), 12, fill=(20, 20, 20))
    draw.line(_box(0.662, 0.388, 0.718, 0.31), fill=(170, 170, 170), width=18)
    draw.rectangle(_box(0.651, 0.544, 0.729, 0.578), fill=(20, 20, 20))
    return picture


def french_horn() -> Image.Image:
    """Three rings of brass tube, valves, a mouthpiece and a bell."""
    picture = _sky((90, 30, 30), (40, 15, 15))
    draw = ImageDraw.Draw(picture)
    rings = ((_box(0.2, 0.15, 0.75, 0.7), 0, 360, 34), (_box(0.26, 0.2, 0.7, 0.64), 0, 360, 28),
             (_box(0.33, 0.27, 0.64, 0.58), 20, 330, 24))  # fmt: skip
    for (left, top, right, bottom), start, end, width in rings:
        for inwards, brass in ((0, (110, 75, 15)), (6, (190, 140, 40)), (14, (250, 215, 110))):
            if width > 2 * inwards:
                box = left + inwards, top + inwards, right - inwards, bottom - inwards
                draw.arc(box, start, end, fill=brass, width=width - 2 * inwards)
    outline = ((0.66, 0.45), (0.72, 0.42), (0.98, 0.78), (0.55, 0.98), (0.6, 0.6))
    draw.polygon([(x * FINE, y * FINE) for x, y in outline], fill=(200, 150, 45))
    draw.ellipse(_box(0.5, 0.62, 0.95, 0.98), fill=(225, 180, 70), outline=(120, 80, 20), width=8)
    draw.ellipse(_box(0.56, 0.67, 0.9, 0.94), fill=(150, 100, 30))
    draw.ellipse(_box(0.64, 0.73, 0.82, 0.88), fill=(70, 40, 10))
    for left in (0.38, 0.45, 0.52):
        box = _box(left, 0.34, left + 0.05, 0.56)
        draw.rounded_rectangle(box, 10, fill=(215, 175, 80), outline=(110, 75, 15), width=5)
    draw.line(_box(0.2, 0.4, 0.06, 0.2), fill=(215, 175, 80), width=16)
    return picture


def cassette_player() -> Image.Image:
    """A portable player: two loudspeakers, a cassette between them, a dial above, buttons below."""
    picture = _sky((200, 190, 170), (150, 130, 110))
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle(_box(0.06, 0.22, 0.94, 0.8), 24, fill=(45, 45, 48), outline=(15, 15, 15), width=8)
    draw.rectangle(_box(0.35, 0.1, 0.65, 0.12), fill=(60, 60, 60))
    for x in (0.21, 0.79):
        for radius, grey in ((0.125, 25), (0.11, 80), (0.08, 40), (0.03, 110)):
            draw.ellipse(_round(x, 0.56, radius), fill=(grey, grey, grey))
    draw.rectangle(_box(0.36, 0.42, 0.64, 0.64), fill=(180, 180, 180), outline=(90, 90, 90), width=6)
    draw.rectangle(_box(0.4, 0.46, 0.6, 0.58), fill=(30, 30, 30))
    for x in (0.45, 0.55):
        draw.ellipse(_round(x, 0.52, 0.03), fill=(220, 220, 220))
    for number in range(6):
        left = 0.36 + 0.048 * number
        draw.rectangle(_box(left, 0.68, left + 0.04, 0.74), fill=(200, 200, 200), outline=(60, 60, 60), width=3)
    draw.rectangle(_box(0.1, 0.26, 0.9, 0.36), fill=(170, 170, 165))
    for number in range(20):
        x = 0.14 + 0.036 * number
        draw.line(_box(x, 0.28, x, 0.32 if number % 5 else 0.34), fill=(30, 30, 30), width=3)
    for x in (0.685, 0.765, 0.845):
        draw.ellipse(_round(x, 0.31, 0.025), fill=(60, 60, 60))
    return picture


def temple() -> Image.Image:
    """The example photo, a tall place of worship: a "church" to the model. Its middle square."""
    photo = Image.open(TEMPLE).convert("RGB")
    left = (photo.width - photo.height) // 2
    return photo.crop((left, 0, left + photo.height, photo.height))


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "golf ball": golf_ball,
    "parachute": parachute,
    "gas pump": gas_pump,
    "French horn": french_horn,
    "cassette player": cassette_player,
    "church": temple,
}
