"""Chance that belongs to an image: the same alone and in a batch, another one for another image."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def own_seed(image: Tensor, seed: int) -> int:
    """A number that depends on the image's pixels (C, H, W) and on the seed alone."""
    pixels = image.detach().float().cpu().contiguous().numpy()
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=8, salt=f"{seed:x}".encode()[-16:]).digest()
    return int.from_bytes(digest, "little") >> 1


def fingerprint(rows: Tensor) -> tuple[float, ...]:
    """A number a row, the same for the same rows and, but for a chance of some 1e-15, for no others."""
    flat = rows.detach().flatten(1)
    flat = (flat.cpu() if flat.device.type == "mps" else flat).double()  # Apple's devices have no double precision
    return tuple((flat @ _directions(flat.shape[1], flat.device)).tolist())


@functools.lru_cache(maxsize=4)
def _directions(number: int, device: torch.device) -> Tensor:
    return torch.randn(number, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)


def own_generator(image: Tensor, seed: int) -> torch.Generator:
    """A generator of the image's own, see ``own_seed``."""
    return torch.Generator().manual_seed(own_seed(image, seed))


def uniform_noise(images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Noise in [-1, 1) for images (B, C, H, W), each from its own generator."""
    noise = [2 * torch.rand(one.shape, generator=own) - 1 for one, own in zip(images, generators, strict=True)]
    return torch.stack(noise).to(images)
