"""Imagenette as one array of bytes: decoded once, then read by slices."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
SIZE = 224
MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)


def decode(tar: Path, work: Path, size: int = SIZE) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(N, size, size, 3) bytes, (N,) class numbers and names, in the order of the file names; cached in ``work``."""
    pixels_file, labels_file, names_file = work / "pixels.npy", work / "labels.npy", work / "names.txt"
    if not names_file.exists():
        with tarfile.open(tar) as archive:
            members = sorted((m for m in archive.getmembers() if m.isfile()), key=lambda m: m.name)
            pixels = np.empty((len(members), size, size, 3), np.uint8)
            for row, member in enumerate(members):
                content = archive.extractfile(member)
                assert content is not None
                image = Image.open(io.BytesIO(content.read())).convert("RGB")
                scale = size / min(image.size)
                image = image.resize(
                    (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
                )
                left, top = (image.width - size) // 2, (image.height - size) // 2
                pixels[row] = np.asarray(image.crop((left, top, left + size, top + size)))
        order = list(CLASSES)
        np.save(pixels_file, pixels)
        np.save(labels_file, np.array([order.index(m.name.split("/")[-2]) for m in members]))
        names_file.write_text("\n".join(m.name for m in members))
    return np.load(pixels_file, mmap_mode="r"), np.load(labels_file), names_file.read_text().splitlines()


def split(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the training nine tenths and of the held-out tenth."""
    order = np.random.default_rng(seed).permutation(count)
    held_out = count // 10
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def augment(images: torch.Tensor, maps: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random resized crop (area 35 to 100 %, ratio 3/4 to 4/3), flip, brightness and contrast of (B, 3, S, S) bytes.

    ``maps`` (B, s, s) take the same crop and flip; only the photos change in brightness and contrast.
    """
    size, side = images.shape[-1], maps.shape[-1]
    out = torch.empty(images.shape, dtype=torch.float32)
    out_maps = torch.empty(maps.shape, dtype=torch.float32)
    draws = torch.rand(len(images), 7, generator=generator)
    for row, (image, image_map, draw) in enumerate(zip(images, maps, draws.tolist(), strict=True)):
        area, ratio = 0.35 + 0.65 * draw[0], (3 / 4) ** (1 - 2 * draw[1])
        height = min(size, round(size * (area / ratio) ** 0.5))
        width = min(size, round(size * (area * ratio) ** 0.5))
        top, left = int(draw[2] * (size - height + 1)), int(draw[3] * (size - width + 1))
        crop = image[None, :, top : top + height, left : left + width].float()
        crop = torch.nn.functional.interpolate(crop, (size, size), mode="bilinear", antialias=False)[0]
        up, down = round(top * side / size), max(1, round(height * side / size))
        near, wide = round(left * side / size), max(1, round(width * side / size))
        map_crop = image_map[None, None, up : up + down, near : near + wide].float()
        out_maps[row] = torch.nn.functional.interpolate(map_crop, (side, side), mode="bilinear", antialias=False)[0, 0]
        if draw[4] < 0.5:
            crop, out_maps[row] = crop.flip(-1), out_maps[row].flip(-1)
        mean = crop.mean()
        out[row] = ((crop - mean) * (0.7 + 0.6 * draw[5]) + mean) * (0.7 + 0.6 * draw[6])
    return normalise(out.clamp_(0, 255)), out_maps


def normalise(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - MEAN) / STD
