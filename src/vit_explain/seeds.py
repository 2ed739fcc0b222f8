"""Chance that belongs to an image: the same alone and in a batch, another one for another image."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def own_generator(image: Tensor, seed: int) -> torch.Generator:
    """A generator whose numbers depend on the image's pixels (C, H, W) and on the seed alone."""
    pixels = image.detach().float().cpu().contiguous().numpy()
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=8, salt=f"{seed:x}".encode()[-16:]).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
