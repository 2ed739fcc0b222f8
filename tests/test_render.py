"""Heat, colours, layouts and words."""

from __future__ import annotations

import io
import tracemalloc

import matplotlib
import numpy as np
import pytest
from PIL import Image

from vit_explain.charts import gallery, grid
from vit_explain.errors import ImageError, OptionError
from vit_explain.paper import longer_side
from vit_explain.render import (
    SIGNED_COLORMAP,
    UNSIGNED_COLORMAP,
    colorize,
    describe,
    gif,
    normalise,
    overlay,
    png,
    side_by_side,
)


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def blob(gh: int, gw: int, y: float, x: float, width: float = 0.08) -> np.ndarray:
    rows, columns = (np.arange(gh) + 0.5) / gh, (np.arange(gw) + 0.5) / gw
    return np.exp(-((rows[:, None] - y) ** 2 + (columns[None] - x) ** 2) / (2 * width**2))


def test_normalise() -> None:
    maps = np.array([[[2.0, 4.0], [6.0, 10.0]], [[3.0, 3.0], [3.0, 3.0]], [[-1.0, 1.0], [0.0, 0.0]]])
    unsigned = normalise(maps, signed=False)
    assert unsigned.dtype == np.float32
    np.testing.assert_allclose(unsigned, [[[0, 0.25], [0.5, 1]], [[0, 0], [0, 0]], [[0, 1], [0.5, 0.5]]])
    signed = normalise(np.array([[[-2.0, 1.0], [0.0, 0.5]], [[0.0, 0.0], [0.0, 0.0]]]), signed=True)
    np.testing.assert_allclose(signed, [[[0, 0.75], [0.5, 0.625]], [[0.5, 0.5], [0.5, 0.5]]])
    extreme = normalise(np.array([[[-3e38, 3e38]], [[0, 1e-45]]], np.float32), signed=False)
    np.testing.assert_array_equal(extreme, [[[0, 1]], [[0, 1]]])
    given = maps.copy()
    normalise(given, signed=True)
    np.testing.assert_array_equal(given, maps)
    for wrong in (np.array([[[np.nan]]]), np.array([[[np.inf]]]), np.zeros((1, 0, 3)), np.zeros(3)):
        with pytest.raises(ImageError):
            normalise(wrong, signed=False)


def test_a_few_peaks_do_not_hide_the_rest() -> None:
    ramp = np.arange(100.0).reshape(10, 10)
    np.testing.assert_allclose(normalise(ramp, False), np.minimum(1, ramp / 98))  # two of a hundred share the top
    peak = np.full((10, 10), 0.01)
    peak[3, 4] = 1.01
    peak[5, 5] = 0.06  # one of the 98 % beside the only peak: shown as a fifth, not as another peak
    shown = normalise(peak, False)
    assert shown[3, 4] == 1 and shown[5, 5] == pytest.approx(0.05 * 4) and shown[0, 0] == 0
    signed = normalise(ramp - 50, True)
    np.testing.assert_allclose(signed, np.clip(0.5 + 0.5 * (ramp - 50) / 49, 0, 1))


@pytest.mark.parametrize("name", [UNSIGNED_COLORMAP, SIGNED_COLORMAP, "jet", "viridis"])
def test_colorize_is_matplotlibs_table(name: str) -> None:
    heat = np.linspace(0, 1, 256).reshape(16, 16)
    expected = np.rint(matplotlib.colormaps[name](heat)[:, :, :3] * 255)
    np.testing.assert_array_equal(colorize(heat, name), expected)


def test_defaults_are_fit_for_their_kind() -> None:
    steps = colorize(np.linspace(0, 1, 64)[None], UNSIGNED_COLORMAP)[0] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(steps) > 0).all()  # more relevance is always lighter
    cold, none, hot = colorize(np.array([[0.0, 0.5, 1.0]]), SIGNED_COLORMAP)[0].astype(int)
    assert none.min() > 235 and cold[2] > cold[0] and hot[0] > hot[2]  # blue, white, red


def test_unknown_colormaps_name_near_ones() -> None:
    with pytest.raises(OptionError, match="inferno"):
        colorize(np.zeros((2, 2)), "infernoo")


@pytest.mark.parametrize("signed", [False, True])
def test_overlay_formula_and_untouched_photo(signed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    below = photo(23, 31)
    heat = np.random.default_rng(1).random((23, 31)).astype(np.float32)
    nothing = np.zeros((23, 31), bool)
    nothing[5:15, 3:20] = True
    heat[nothing] = 0.5 if signed else 0.0
    colours = colorize(heat, SIGNED_COLORMAP if signed else UNSIGNED_COLORMAP).astype(float)
    alpha = 0.6 * (np.abs(2 * heat - 1) if signed else heat)[:, :, None]
    expected = below * (1 - alpha) + colours * alpha
    whole = overlay(below, heat, signed, opacity=0.6)
    assert np.abs(whole - expected).max() <= 0.51
    np.testing.assert_array_equal(whole[nothing], below[nothing])
    monkeypatch.setattr("vit_explain.render.STRIP_PIXELS", 50)
    np.testing.assert_array_equal(overlay(below, heat, signed, opacity=0.6), whole)
    np.testing.assert_array_equal(overlay(below, heat, signed, opacity=0.0), below)


def test_overlay_of_no_relevance_is_the_photo() -> None:
    below = photo(8, 9)
    for signed in (False, True):
        heat = normalise(np.zeros((1, 8, 9)), signed)[0]
        np.testing.assert_array_equal(overlay(below, heat, signed), below)


def test_overlay_of_a_large_photo_needs_little_more_than_its_result() -> None:
    below, heat = np.zeros((4000, 3000, 3), np.uint8), np.zeros((4000, 3000), np.float32)
    overlay(below[:2], heat[:2], signed=False)
    tracemalloc.start()
    out = overlay(below, heat, signed=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < out.nbytes + 80 * 2**20


def test_overlay_refuses() -> None:
    with pytest.raises(ImageError, match="heat"):
        overlay(photo(4, 4), np.zeros((4, 5)), signed=False)
    with pytest.raises(ImageError):
        overlay(photo(4, 4).astype(float), np.zeros((4, 4)), signed=False)  # pyright: ignore[reportArgumentType]
    for opacity in (-0.1, 1.1, float("nan")):
        with pytest.raises(OptionError, match="opacity"):
            overlay(photo(4, 4), np.zeros((4, 4)), signed=False, opacity=opacity)


@pytest.mark.parametrize(
    ("size", "panel"),
    [((1, 1), (320, 320)), ((10, 20000), (640, 48)), ((20000, 10), (48, 640)), ((300, 500), (500, 300))],
)
@pytest.mark.parametrize("signed", [False, True])
def test_side_by_side_panels(size: tuple[int, int], panel: tuple[int, int], signed: bool) -> None:
    red = np.zeros((*size, 3), np.uint8)
    red[:] = (201, 3, 4)
    heat = np.full(size, 0.5 if signed else 0.0, np.float32)
    sheet = side_by_side(red, heat, signed, "a title")
    found = (np.asarray(sheet) == (201, 3, 4)).all(2)
    # No relevance: photo and overlay are equal, so the photo's colour fills exactly two panels.
    assert found.any(0).sum() == 2 * panel[0] and found.any(1).sum() == panel[1]
    assert sheet.mode == "RGB" and sheet.width < 2200 and sheet.height < 800


def test_poles_of_maps_about_no_class() -> None:
    """They speak neither for nor against anything: the words stay away, and the colour bar names numbers."""
    grey, heat = np.full((100, 200, 3), 128, np.uint8), np.zeros((100, 200), np.float32)
    drawn = [side_by_side(grey, heat, True, of_class=of_class).tobytes() for of_class in (True, False)]
    assert drawn[0] != drawn[1]
    assert side_by_side(grey, heat, False).tobytes() == side_by_side(grey, heat, False, of_class=False).tobytes()
    values = blob(14, 14, 0.5, 0.5) - 0.1
    told = describe(values, signed=True)
    assert told.startswith(describe(values, signed=True, of_class=False)[:-1] + ";") and "against" in told


def test_side_by_side_frames_what_was_seen_but_overlay_does_not() -> None:
    grey, heat = np.full((100, 200, 3), 128, np.uint8), np.zeros((100, 200), np.float32)

    def sheet(box: tuple[float, float, float, float] | None) -> bytes:
        return side_by_side(grey, heat, signed=False, seen_box=box).tobytes()

    assert sheet((50, 0, 150, 100)) != sheet(None)
    assert sheet((0, 0, 200, 100)) == sheet(None)  # all of it was seen: no frame
    side_by_side(grey, heat, signed=False, seen_box=(199.5, 99.5, 200, 100))


@pytest.mark.parametrize("text", ["", "short", "many words " * 90, "oneword" * 90, "a\nb\tc", "größe ✓ 猫", "..."])
def test_any_text_fits(text: str) -> None:
    heat = np.zeros((20, 20), np.float32)
    sheet = side_by_side(photo(20, 20), heat, signed=False, title=text, captions=(text, text, text))
    assert sheet.width == side_by_side(photo(20, 20), heat, signed=False).width
    assert (np.asarray(sheet)[:, -8:] == 255).all()  # nothing runs over the right margin
    table = grid([[photo(9, 9), None]], [text], [text, text], text, cell=80)
    assert (np.asarray(table)[:, -4:] == 255).all()


def test_grid_has_equal_cells() -> None:
    red, blue = Image.new("RGB", (40, 20), (255, 0, 0)), np.full((1, 3, 3), (0, 0, 255), np.uint8)
    table = np.asarray(grid([[red, blue, None], [blue]], cell=100))
    reds, blues = (table == (255, 0, 0)).all(2), (table == (0, 0, 255)).all(2)
    assert reds.sum() == 100 * 50 and blues.sum() == 2 * 100 * 33
    labelled = grid([[red], [red]], ["one", "two"], ["column"], "title")
    assert labelled.width > grid([[red], [red]]).width and labelled.height > grid([[red], [red]]).height
    grid([[red]], ["a", "b"], ["c", "d"])
    grid([[np.zeros((20000, 10, 3), np.uint8), np.zeros((10, 20000, 3), np.uint8)]])
    for empty in ([], [[]], [[None]]):
        with pytest.raises(ImageError):
            grid(empty)


def test_long_pictures_are_given_more_room() -> None:
    wanted = {(300, 200): 200, (600, 200): 200, (200, 1000): 333, (4000, 100): 800}
    assert {size: longer_side(size, 200) for size in wanted} == wanted
    tall = np.full((500, 100, 3), (255, 0, 0), np.uint8)
    for sheet in (grid([[tall, tall]], cell=200), gallery([tall, tall], [("one", "1 s"), ("two", "2 s")], cell=200)):
        assert (np.asarray(sheet) == (255, 0, 0)).all(2).sum() == 2 * 333 * 67


def test_gif() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    with Image.open(io.BytesIO(gif([Image.new("RGB", (9, 5), c) for c in colours], 0.25))) as animation:
        assert animation.n_frames == 3 and animation.info["loop"] == 0  # pyright: ignore[reportAttributeAccessIssue]
        for number, colour in enumerate(colours):
            animation.seek(number)
            assert animation.info["duration"] == 250
            assert animation.convert("RGB").getpixel((4, 2)) == colour
    gif([photo(4, 4)], 1)
    with pytest.raises(ImageError):
        gif([])
    with pytest.raises(ImageError):
        gif([photo(4, 4), photo(4, 5)])
    for seconds in (0, -1, float("nan"), 1e9):
        with pytest.raises(OptionError):
            gif([photo(4, 4)], seconds)


def test_png_is_lossless_and_deterministic() -> None:
    picture = photo(7, 5)
    assert png(picture) == png(Image.fromarray(picture))
    with Image.open(io.BytesIO(png(picture))) as read:
        np.testing.assert_array_equal(np.asarray(read), picture)


@pytest.mark.parametrize(
    ("y", "x", "name"),
    [
        (0.15, 0.15, "upper left"),
        (0.15, 0.5, "upper middle"),
        (0.15, 0.85, "upper right"),
        (0.5, 0.15, "middle left"),
        (0.5, 0.5, "centre"),
        (0.5, 0.85, "middle right"),
        (0.85, 0.15, "lower left"),
        (0.85, 0.5, "lower middle"),
        (0.85, 0.85, "lower right"),
    ],
)
@pytest.mark.parametrize("shape", [(14, 14), (7, 16), (32, 24)])
def test_describe_names_the_place(y: float, x: float, name: str, shape: tuple[int, int]) -> None:
    text = describe(blob(*shape, y, x), signed=False)
    assert f"mostly in the {name}" in text and text.endswith(".") and text.count(".") == 1
    assert "speaks" not in text


def test_describe_concentration_and_shares() -> None:
    one = np.zeros((10, 10))
    one[2, 7] = 3
    assert describe(one, signed=False) == (
        "Relevance lies mostly in the upper right; half of it is within 1 % of the image."
    )
    both = np.zeros((10, 10))
    both[5, 5], both[5, 4] = 3, -1
    assert describe(both, signed=True).endswith("75 % of it speaks for the target and 25 % against.")
    assert describe(-one, signed=True).endswith("0 % of it speaks for the target and 100 % against.")
    tiny = np.zeros((64, 64))
    tiny[0, 0] = 1e-30
    assert "under 1 %" in describe(tiny, signed=False)


def test_describe_several_places_not_the_empty_middle() -> None:
    text = describe(blob(14, 14, 0.15, 0.15) + 0.9 * blob(14, 14, 0.85, 0.85), signed=False)
    assert "several places" in text and "upper left" in text and "lower right" in text and "centre" not in text


def test_describe_even_and_empty() -> None:
    rng = np.random.default_rng(0)
    for even in (np.ones((14, 14)), 1 + 0.1 * rng.random((14, 14)), np.ones((1, 1))):
        assert describe(even, signed=False) == "Relevance is spread evenly: no single place stands out."
    assert "spread evenly" in describe(np.ones((4, 4)), signed=True)
    for signed in (False, True):
        assert describe(np.zeros((3, 3)), signed) == "There is no relevance anywhere."
    for wrong in (np.full((2, 2), np.nan), np.zeros((0, 2)), np.zeros((1, 2, 2))):
        with pytest.raises(ImageError):
            describe(wrong, signed=False)
