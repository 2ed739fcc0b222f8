"""Any picture, from wherever it comes, as an upright RGB picture; what cannot be one is refused in one sentence."""

from __future__ import annotations

import io
import os
import stat
import struct
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from .errors import ImageError

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

DEFAULT_MAX_PIXELS = 100_000_000
# Pillow reads EPS by running Ghostscript, which is more than looking at a picture.
REFUSED_FORMATS = frozenset({"EPS"})
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(source: ImageSource, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """A path, the bytes of a file, a PIL picture or an array as an upright RGB picture of its own.

    Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), in uint8 or in floats within [0, 1]. Transparency is laid over
    white; EXIF orientation is applied; of several frames the first is taken (of a PIL picture, the current one). 16-bit
    and integer pictures are scaled from 0..65535 to 0..255. Float pictures within [0, 1] are scaled to 0..255, within
    [0, 255] kept, and otherwise stretched from their least to their greatest value. Colour profiles are not applied.

    ``max_pixels`` bounds width times height and is checked before anything is decoded; it stands in for Pillow's own
    limit, whose settings are neither read nor changed (a few rare formats still enforce theirs). Raises ImageError.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the given picture", max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), "the given data", "", max_pixels)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            f"cannot read a {type(source).__name__} as a picture; give a path, bytes, a PIL picture or a NumPy array"
        )
    path = os.fsdecode(source)
    if path.lower().startswith(("http://", "https://")):
        raise ImageError(f"{path!r} is an address; download the picture and give the path of the file")
    with _open(path) as handle:
        return _decode(handle, repr(path), path, max_pixels)


def _open(path: str) -> IO[bytes]:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{path!r} is a folder; give the path of a picture in it")
        if not stat.S_ISREG(mode):  # a pipe or a device might never end
            raise ImageError(f"{path!r} is not a regular file; give the path of a picture")
        return open(path, "rb")
    except FileNotFoundError:
        raise ImageError(f"there is no file {path!r}; check the path") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path!r} cannot be opened: {getattr(error, 'strerror', None) or error}") from None


def _decode(handle: IO[bytes], name: str, path: str, max_pixels: int) -> Image.Image:
    if not handle.read(1):
        raise ImageError(f"{name} is empty; give a picture such as a PNG or a JPEG")
    try:
        image = _identify(handle, path)
    except Exception as error:
        raise _refusal(error, name) from None
    if image is None:
        raise ImageError(f"{name} is not a picture that Pillow can read; PNG, JPEG, WebP, GIF, TIFF and BMP work")
    with image:
        return _to_rgb(image, name, max_pixels)


def _identify(handle: IO[bytes], path: str) -> Image.Image | None:
    """What ``Image.open`` does, less its pixel limit: that one is a global, and its warning cannot be silenced for one
    thread alone, so a larger ``max_pixels`` could not be granted through it."""
    handle.seek(0)
    prefix, tried = handle.read(16), set[str]()
    for register in (Image.preinit, Image.init):  # the common formats first, as Pillow does
        register()
        for name in [n for n in Image.ID if n in Image.OPEN and n not in tried | REFUSED_FORMATS]:
            tried.add(name)
            factory, accept = Image.OPEN[name]
            try:
                accepted = accept(prefix) if accept else True
                if accepted and not isinstance(accepted, str):
                    handle.seek(0)
                    return factory(handle, path)
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # looked like this format at first, but is not
    return None


def _refusal(error: Exception, name: str) -> ImageError:
    if isinstance(error, ImageError):
        return error
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageError(f"{name} has more pixels than Pillow allows in this format; save it smaller or as a PNG")
    if isinstance(error, MemoryError):
        return ImageError(f"{name} does not fit into memory; save it with fewer pixels")
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return ImageError(f"{name} is damaged, cut short or of an unsupported kind ({reason}); save it again as a PNG")


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height}); give a picture of at least 1 x 1")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} = {width * height:,} pixels, above the limit of {max_pixels:,}; "
            "allow more with max_pixels= (--max-pixels on the command line)"
        )


def _to_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(image.size, name, max_pixels)
    try:
        _make_room(image)
        image.load()
        _check_size(image.size, name, max_pixels)  # icons tell their true size only now
        upright = UPRIGHT.get(_orientation(image))
        flat = _flatten(image, name)
    except Exception as error:
        raise _refusal(error, name) from None
    flat.info.clear()  # else the orientation would be applied a second time to what was loaded
    return flat if upright is None else flat.transpose(upright)


def _make_room(image: Image.Image) -> None:
    """A TIFF picture checks Pillow's global limit again when it makes room for its pixels; ours was just checked."""
    private: Any = image
    if image.format == "TIFF" and getattr(image, "_im", 0) is None and getattr(image, "tile", None):
        private.im = Image.core.new(image.mode, getattr(image, "_tile_size", image.size))


def _orientation(image: Image.Image) -> int:
    try:  # after loading: TIFF turns itself upright and then drops the tag
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data is no reason to refuse the pixels
        return 1


def _flatten(image: Image.Image, name: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image), name)).convert("RGB")
    if image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
        return ImageCms.applyTransform(image, transform) or image
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(clear, mask=clear.getchannel("A"))
        return white
    return image.convert("RGB")


def _eight_bits(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if values.dtype.kind in "iu":
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{name} has values from {values.min()} to {values.max()}; scale them to 0..65535")
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # rounds 255 * v / 65535
    if not np.isfinite(values).all():
        raise ImageError(f"{name} has values that are not finite; replace NaN and infinity first")
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    return np.rint((values.astype(np.float64) - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    kinds = "give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) in uint8, or in floats within [0, 1]"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        turn = "; move the channels last with array.transpose(1, 2, 0)" if array.shape[:1] in ((1,), (3,)) else ""
        raise ImageError(f"an array of shape {array.shape} is no picture; {kinds}{turn if array.ndim == 3 else ''}")
    _check_size((array.shape[1], array.shape[0]), "the given array", max_pixels)
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-6 and high <= 1 + 1e-6):  # written so that NaN fails too
            raise ImageError(f"the given array's floats run from {low:g} to {high:g}; {kinds}")
        array = np.rint(np.clip(array, 0, 1).astype(np.float32) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"an array of {array.dtype} is no picture; {kinds}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), "the given array", max_pixels)
