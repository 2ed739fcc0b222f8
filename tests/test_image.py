"""Pictures in (every mode, every damage), what timm would feed the model, and the way back to the picture."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_explain.errors import ImageError, OptionError
from vit_explain.image import (
    CROP_MODES,
    Geometry,
    Preprocessing,
    denormalise,
    plan,
    prepare,
)
from vit_explain.photos import DEFAULT_MAX_PIXELS, load_image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture with slopes and an edge, each channel different."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = np.stack([np.sin(x / 7), np.cos(y / 11), np.sin((x + y) / 13)], -1)
    waves[: height // 2] *= 0.5
    return np.rint(127.5 + 127 * waves).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def refused(source: object, *words: str, **options: int) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)  # pyright: ignore[reportArgumentType]
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text
    return text


# ---- preparing ----------------------------------------------------------------------------------------------------


def timm_pixels(image: Image.Image, how: Preprocessing) -> np.ndarray:
    data = pytest.importorskip("timm.data")
    transform = data.create_transform(
        input_size=(3, *how.size),
        is_training=False,
        interpolation=how.interpolation,
        mean=how.mean,
        std=how.std,
        crop_pct=how.crop_pct,
        crop_mode=how.crop_mode,
    )
    return transform(image).numpy()


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (97, 33)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.875, 0.95, 1.2])
def test_prepare_is_timms_transform_bit_for_bit(crop_mode: str, size: tuple[int, int], crop_pct: float) -> None:
    shapes = [(64, 64), (1, 1), (2, 3), (37, 211), (211, 37), (48, 80), (300, 199), (65, 64), (5, 400)]
    for number, (shape, interpolation) in enumerate(
        (shape, kind) for shape in shapes for kind in ("bicubic", "bilinear", "nearest", "lanczos")
    ):
        how = Preprocessing(size, MEAN, STD, interpolation, crop_pct, crop_mode)
        image = Image.fromarray(noise(*shape, seed=number))
        if 0 in (round(side * min(g / s for g, s in zip(size, shape, strict=True))) for side in shape):
            continue  # timm itself fails on a side of zero pixels
        pixels, geometry = prepare(image, how)
        np.testing.assert_array_equal(pixels, timm_pixels(image, how), err_msg=f"{shape} {interpolation}")
        assert geometry == plan(shape, how) and pixels.shape == (3, *size) and pixels.flags.c_contiguous


def test_prepare_long_thin_part_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(smooth(40, 2000))
    for mode in CROP_MODES:
        how = Preprocessing((56, 56), (0.0,) * 3, (1.0,) * 3, "bicubic", 0.9, mode)
        whole, _ = prepare(image, how)
        with monkeypatch.context() as patch:
            patch.setattr("vit_explain.image.WHOLE_RESIZE_PIXELS", 0)
            part, _ = prepare(image, how)
        assert np.abs(whole - part).max() <= 2.001 / 255, mode


@pytest.mark.parametrize("shape", [(10, 20000), (20000, 10), (1, 20000), (1, 1)])
@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_prepare_extreme_shapes(shape: tuple[int, int], crop_mode: str) -> None:
    how = Preprocessing((224, 224), MEAN, STD, "bicubic", 0.9, crop_mode)
    pixels, geometry = prepare(Image.new("RGB", (shape[1], shape[0]), (255, 0, 0)), how)
    assert pixels.shape == (3, 224, 224) and np.isfinite(pixels).all()
    np.testing.assert_array_equal(denormalise(pixels, MEAN, STD)[111, 111], [255, 0, 0])
    assert 0 < geometry.seen_share <= 1
    assert geometry.to_original(np.ones((1, 14, 14), np.float32)).shape == (1, *shape)


def test_prepare_refuses_other_modes() -> None:
    with pytest.raises(ImageError, match="load_image"):
        prepare(Image.new("L", (4, 4)), Preprocessing((8, 8), MEAN, STD))


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (0, 8)},
        {"mean": (0.5,)},
        {"std": (0.0, 1.0, 1.0)},
        {"interpolation": "bilinar"},
        {"crop_mode": "centre"},
        {"crop_pct": 0.0},
        {"crop_pct": float("nan")},
        {"resize": (0, 8)},
        {"resize": (8, 8), "crop_pct": 0.9},
    ],
)
def test_preprocessing_refuses(wrong: dict) -> None:
    with pytest.raises(OptionError):
        Preprocessing(**{"size": (8, 8), "mean": MEAN, "std": STD, **wrong})


@pytest.mark.parametrize(("cut", "resized"), [(160, 212), (256, 372), (336, 463), (384, 450), (224, 256)])
def test_a_known_resize_is_kept_to_the_pixel(cut: int, resized: int) -> None:
    how = Preprocessing((cut, cut), MEAN, STD, resize=(resized, resized))
    assert plan((500, 700), how).resized == (resized, int(resized * 700 / 500))


def test_denormalise_gives_the_picture_back() -> None:
    picture = noise(32, 48)
    pixels, geometry = prepare(Image.fromarray(picture), Preprocessing((32, 48), MEAN, STD))
    np.testing.assert_array_equal(denormalise(pixels, MEAN, STD), picture)
    assert geometry == Geometry.identity(32, 48)
    with pytest.raises(ImageError):
        denormalise(pixels[0], MEAN, STD)


# ---- the way back -------------------------------------------------------------------------------------------------

WAYS = [
    ((60, 40), Preprocessing((56, 56), MEAN, STD, "bicubic", 0.9, "center")),
    ((40, 90), Preprocessing((56, 28), MEAN, STD, "bicubic", 1.0, "center")),
    ((33, 71), Preprocessing((42, 56), MEAN, STD, "bicubic", 0.875, "squash")),
    ((90, 31), Preprocessing((56, 56), MEAN, STD, "bicubic", 1.0, "border")),
    ((20, 25), Preprocessing((56, 70), MEAN, STD, "bicubic", 0.9, "border")),
    ((7, 5), Preprocessing((56, 56), MEAN, STD, "bicubic", 1.3, "squash")),
    ((1, 1), Preprocessing((56, 56), MEAN, STD)),
]


def slow_to_original(geometry: Geometry, grid: np.ndarray, interpolation: str, outside: float) -> np.ndarray:
    (height, width), (gh, gw) = geometry.original, grid.shape
    out = np.full((height, width), outside)
    for y in range(height):
        for x in range(width):
            v = (y + 0.5) * geometry.resized[0] / height - geometry.offset[0]
            u = (x + 0.5) * geometry.resized[1] / width - geometry.offset[1]
            if not (0 <= v < geometry.input[0] and 0 <= u < geometry.input[1]):
                continue
            r, c = v * gh / geometry.input[0], u * gw / geometry.input[1]
            if interpolation == "nearest":
                out[y, x] = grid[int(r), int(c)]
                continue
            r, c = min(max(r - 0.5, 0), gh - 1), min(max(c - 0.5, 0), gw - 1)
            r0, c0 = int(r), int(c)
            r1, c1 = min(r0 + 1, gh - 1), min(c0 + 1, gw - 1)
            upper = grid[r0, c0] * (1 - (c - c0)) + grid[r0, c1] * (c - c0)
            lower = grid[r1, c0] * (1 - (c - c0)) + grid[r1, c1] * (c - c0)
            out[y, x] = upper * (1 - (r - r0)) + lower * (r - r0)
    return out


@pytest.mark.parametrize(("original", "how"), WAYS)
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_to_original_equals_a_pixel_loop(original: tuple[int, int], how: Preprocessing, interpolation: str) -> None:
    geometry = plan(original, how)
    for grid in ((4, 7), (1, 1), (2, 1)):
        maps = np.random.default_rng(1).normal(size=(3, *grid)).astype(np.float32)
        fast = geometry.to_original(maps, interpolation, outside=-9.0)
        assert fast.dtype == np.float32 and fast.shape == (3, *original)
        for one, got in zip(maps, fast, strict=True):
            np.testing.assert_allclose(got, slow_to_original(geometry, one, interpolation, -9.0), atol=1e-5)


@pytest.mark.parametrize(("original", "how"), WAYS[:5])
def test_a_bright_cell_lands_on_what_the_model_saw_there(original: tuple[int, int], how: Preprocessing) -> None:
    """Paint one original pixel at a time of a grey picture: the input cell that changes most is the one it maps to."""
    geometry = plan(original, how)
    gh, gw = 4, 4
    cell_h, cell_w = how.size[0] / gh, how.size[1] / gw
    nearest = geometry.to_original(np.arange(1, gh * gw + 1, dtype=np.float32).reshape(1, gh, gw), "nearest")[0]
    plain = Preprocessing(how.size, (0.0,) * 3, (1.0,) * 3, "bilinear", how.crop_pct, how.crop_mode)
    for y, x in [(original[0] // 2, original[1] // 2), (original[0] // 3, original[1] // 3), (0, 0), (5, 7)]:
        picture = np.zeros((*original, 3), np.uint8)
        picture[y, x] = 255
        pixels, _ = prepare(Image.fromarray(picture), plain)
        if nearest[y, x] == 0:
            assert pixels.sum() < 30  # not seen, except perhaps for the rim of the resampling
            continue
        weights = pixels.sum(0)
        v = (weights.sum(1) * (np.arange(how.size[0]) + 0.5)).sum() / weights.sum()
        u = (weights.sum(0) * (np.arange(how.size[1]) + 0.5)).sum() / weights.sum()
        row, column = divmod(int(nearest[y, x]) - 1, gw)
        slack = 1.0 + max(geometry.resized[0] / original[0], geometry.resized[1] / original[1]) / 2
        assert row * cell_h - slack <= v <= (row + 1) * cell_h + slack
        assert column * cell_w - slack <= u <= (column + 1) * cell_w + slack


def test_seen_box_and_share() -> None:
    centre = plan((100, 200), Preprocessing((50, 50), MEAN, STD))
    assert centre.seen_box == (50.0, 0.0, 150.0, 100.0) and centre.seen_share == 0.5
    padded = plan((100, 200), Preprocessing((50, 50), MEAN, STD, crop_mode="border"))
    assert padded.seen_box == (0.0, 0.0, 200.0, 100.0) and padded.seen_share == 1 and padded.offset == (-12, 0)
    outside = centre.to_original(np.ones((1, 5, 5), np.float32), outside=0.5)[0]
    assert (outside[:, :50] == 0.5).all() and (outside[:, 50:150] == 1).all() and (outside[:, 150:] == 0.5).all()


def test_geometry_as_dict_and_back() -> None:
    geometry = plan((100, 201), Preprocessing((50, 56), MEAN, STD))
    assert Geometry.from_dict(geometry.as_dict()) == geometry
    for wrong in ({}, {**geometry.as_dict(), "input": [1]}, {**geometry.as_dict(), "resized": [0, 4]}):
        with pytest.raises(ImageError):
            Geometry.from_dict(wrong)
    for maps in (np.zeros((4, 4)), np.zeros((1, 0, 4))):
        with pytest.raises(ImageError):
            geometry.to_original(maps)
    with pytest.raises(OptionError):
        geometry.to_original(np.zeros((1, 2, 2)), "cubic")


# ---- loading ------------------------------------------------------------------------------------------------------


def test_sources_give_the_same_picture(tmp_path: Path) -> None:
    picture = noise(9, 13)
    data = encoded(Image.fromarray(picture), "PNG")
    path = tmp_path / "a picture, ä.png"
    path.write_bytes(data)
    for source in (path, str(path), data, picture, picture / 255.0, Image.fromarray(picture), Image.open(path)):
        image = load_image(source)
        assert image.mode == "RGB" and type(image) is Image.Image
        np.testing.assert_array_equal(np.asarray(image), picture)


def test_the_given_picture_is_not_changed() -> None:
    given = Image.fromarray(noise(4, 4))
    load_image(given).paste("white", (0, 0, 4, 4))
    np.testing.assert_array_equal(np.asarray(given), noise(4, 4))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8], upright[:8, 16:], upright[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    # How a camera stores a scene under each orientation, straight from the EXIF standard's table.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    image = load_image(data)
    assert np.abs(np.asarray(image).astype(int) - upright).max() <= 6
    assert load_image(image).tobytes() == image.tobytes()  # not turned a second time
    assert load_image(Image.open(io.BytesIO(data))).tobytes() == image.tobytes()


def test_damaged_exif_is_no_reason_to_refuse() -> None:
    data = encoded(Image.new("RGB", (4, 4), "red"), "PNG", exif=b"Exif\x00\x00MM\x00*garbage")
    assert load_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_modes() -> None:
    picture = Image.fromarray(smooth(12, 10))
    for mode in ("L", "1", "P", "CMYK", "YCbCr", "HSV"):
        converted = picture.convert(mode)
        assert load_image(converted).tobytes() == converted.convert("RGB").tobytes(), mode
    white = np.array([255, 255, 255], np.uint8)
    for mode in ("RGBA", "LA", "RGBa", "La", "PA"):
        image = Image.new(mode, (3, 2), 0)  # fully transparent black
        assert (np.asarray(load_image(image)) == white).all(), mode
    half = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    np.testing.assert_allclose(np.asarray(load_image(half))[0, 0], [255, 127, 127], atol=1)
    lab = Image.new("LAB", (2, 2), (255, 128, 128))
    np.testing.assert_allclose(np.asarray(load_image(lab))[0, 0], [255, 255, 255], atol=2)


def test_palette_and_grey_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0] + [0] * 762)
    palette.putpixel((1, 0), 1)
    for transparency in (0, bytes([0, 255])):
        image = load_image(encoded(palette, "PNG", transparency=transparency))
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 255, 0)]
    opaque = load_image(encoded(palette, "PNG"))
    assert [opaque.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (0, 255, 0)]
    grey = load_image(encoded(Image.new("L", (1, 1), 7), "PNG", transparency=7))
    assert grey.getpixel((0, 0)) == (255, 255, 255)


def test_deep_pictures_use_the_full_range(tmp_path: Path) -> None:
    values = np.array([[0, 65535], [32768, 257]], np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        deep = load_image(encoded(Image.fromarray(values), kind))
        np.testing.assert_array_equal(np.asarray(deep)[:, :, 0], expected, err_msg=kind)
    whole = load_image(Image.fromarray(values.astype(np.int32)))
    np.testing.assert_array_equal(np.asarray(whole)[:, :, 1], expected)
    refused(Image.fromarray(np.array([[-1, 3]], np.int32)), "0..65535")

    def floats(*row: float) -> list[int]:
        return np.asarray(load_image(Image.fromarray(np.array([row], np.float32))))[0, :, 0].tolist()

    assert floats(0, 0.5, 1) == [0, 128, 255]
    assert floats(0, 100, 255) == [0, 100, 255]
    assert floats(-10, 0, 10) == [0, 128, 255]
    assert floats(-3, -3) == [0, 0]
    refused(Image.fromarray(np.array([[0, np.nan]], np.float32)), "finite")


def test_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "TIFF", "WEBP", "MPO"):
        extra = {"lossless": True} if kind == "WEBP" else {}
        image = load_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **extra))
        np.testing.assert_allclose(np.asarray(image)[1, 1], (255, 0, 0), atol=3)


def test_arrays() -> None:
    grey = noise(5, 7)[:, :, 0]
    for array in (grey, grey[:, :, None], grey.astype(np.float32) / 255, grey.astype(np.float64)[:, :, None] / 255):
        np.testing.assert_array_equal(np.asarray(load_image(array))[:, :, 2], grey)
    clear = np.zeros((2, 2, 4))
    assert (np.asarray(load_image(clear)) == 255).all()
    assert load_image(noise(6, 8)[::-2, ::3]).size == (3, 3)
    refused(np.zeros((3, 20, 30), np.uint8), "transpose")
    refused(np.zeros((2, 2, 2), np.uint8), "(2, 2, 2)")
    refused(np.zeros(5, np.uint8), "(5,)")
    refused(np.zeros((0, 5), np.uint8), "no pixels")
    refused(np.zeros((4, 4), np.int64), "int64")
    refused(np.full((4, 4), 255.0), "[0, 1]")
    refused(np.full((4, 4), np.nan), "nan")
    refused(np.array([[0.5, np.inf]]), "inf")
    refused(np.zeros((4, 4), object), "object")


def test_hostile_files_are_one_clear_line(tmp_path: Path) -> None:
    good = encoded(Image.fromarray(noise(64, 64)), "PNG")

    def file(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    refused(tmp_path / "gone.png", "no file", "gone.png")
    refused(str(tmp_path / "gone\n.png"), "no file")
    refused("bad\0name", "cannot be opened")
    refused(tmp_path, "folder")
    refused("https://example.com/cat.jpg", "download")
    refused(file("empty.png", b""), "empty.png", "empty")
    refused(b"", "empty")
    refused(file("notes.txt", b"not a picture at all, only words"), "notes.txt", "not a picture")
    refused(file("page.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "not a picture")
    refused(file("script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"), "not a picture")
    refused(file("zero.png", png_header(0, 5)), "zero.png")
    refused(42, "int")
    refused(None, "NoneType")
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        data = encoded(Image.fromarray(noise(64, 64)), kind)
        for part in (0.5, 0.9):
            name = f"cut-{part}.{kind.lower()}"
            refused(file(name, data[: int(len(data) * part)]), name)
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 0xFF
    refused(bytes(damaged), "the given data")
    closed = Image.open(io.BytesIO(good))
    closed.close()
    refused(closed, "the given picture")


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "regular file")


def test_random_damage_never_escapes_as_another_error() -> None:
    rng = np.random.default_rng(5)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"):
        data = encoded(Image.fromarray(smooth(32, 32)), kind)
        for _ in range(40):
            broken = np.frombuffer(data, np.uint8).copy()
            where = rng.integers(0, min(len(broken), 400), 4)
            broken[where] = rng.integers(0, 256, 4)
            with contextlib.suppress(ImageError):
                load_image(broken.tobytes(), max_pixels=10_000)


def test_pixel_limit_comes_before_decoding() -> None:
    text = refused(png_header(60_000, 60_000), "60000 x 60000", "100,000,000", "max_pixels=", "--max-pixels")
    assert "the given data" in text
    refused(np.zeros((20, 20), np.uint8), "400", max_pixels=399)
    refused(Image.new("L", (20, 20)), "400", max_pixels=399)
    assert load_image(np.zeros((20, 20), np.uint8), max_pixels=400).size == (20, 20)
    assert DEFAULT_MAX_PIXELS == 100_000_000
    # 150 and 400 megapixels, allowed by the caller: decoding starts, and finds that the file holds nothing.
    for side in (12_248, 20_000):
        refused(png_header(side, side), "damaged", max_pixels=side * side)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
def test_pillows_own_limit_is_neither_read_nor_changed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are errors here, so a warning of Pillow's would show; large pictures would be slow."""
    data = encoded(Image.fromarray(noise(30, 40)), kind)
    for limit in (1000, 100):  # where Pillow would warn, where it would raise
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert load_image(data).size == (40, 30)
        assert load_image(Image.fromarray(noise(30, 40))).size == (40, 30)
        assert limit == Image.MAX_IMAGE_PIXELS


def test_compressed_tiff_beyond_pillows_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(noise(30, 40)), "TIFF", compression="tiff_lzw")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    np.testing.assert_array_equal(np.asarray(load_image(data)), noise(30, 40))


@pytest.mark.parametrize("kind", [Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError])
def test_limits_pillow_keeps_become_our_error(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> Image.Image:
        raise kind("too large\nfor this format")

    data = encoded(Image.new("RGB", (4, 4)), "PNG")
    monkeypatch.setitem(Image.OPEN, "PNG", (refuses, lambda prefix: prefix.startswith(b"\x89PNG")))
    refused(data, "pixels")


def test_threads() -> None:
    pictures = [noise(40, 50, seed) for seed in range(6)]
    files = [encoded(Image.fromarray(p), kind) for p, kind in zip(pictures, ["PNG", "TIFF", "BMP"] * 2, strict=True)]
    bomb, wrong = png_header(60_000, 60_000), []

    def work(number: int) -> None:
        for _ in range(20):
            if not np.array_equal(np.asarray(load_image(files[number])), pictures[number]):
                wrong.append(number)
            try:
                load_image(bomb)
                wrong.append(number)
            except ImageError:
                pass

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
