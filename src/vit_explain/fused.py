"""Heads fused on a CUDA device without ever writing a head's attention matrix: Triton kernels.

Plain operations write and read derived attention (B, H, N, M) several times, and that is what methods cost on an
accelerator, where the model itself never writes it. Here ``mean_h W`` (B, rows, M) is made tile by tile: first each
row's log-sum-exp of the scores, then all heads of a tile one after the other.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor

from .layer import ALL, Layer

MOST_CHANNELS = 64  # of a head; tiles of more would not fit
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Products of float32 numbers: three TF32 products make one that is exact to float32's rounding.
PRECISION = "tf32x3"

Kind = Literal["attention", "product", "positive product", "positive gradient", "guided"]


@dataclass(frozen=True)
class Fusable:
    """Weights of a layer that the kernels know: ``A``, ``A ⊙ G``, its positive part, ``max(G, 0)``, or that times the
    sigmoid of the scores, with ``G`` the gradient ``∂y/∂A``; each head times its share, where ``shares`` gives one an
    image and head."""

    kind: Kind
    plain: Any  # the same as a function (layer, images, rows) -> (images, H, rows, M)
    shares: dict[str, Tensor] | None = None  # name of the layer -> (B, H)

    def __call__(self, layer: Layer, images: slice, rows: slice) -> Tensor:
        return self.plain(layer, images, rows)


@functools.cache
def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is Triton, which PyTorch's packages for CUDA on Linux bring, and it can build and run kernels for
    this device and these numbers: with a compiler, Python's headers, and room for the tiles. One is tried."""
    if importlib.util.find_spec("triton") is None:
        return False
    x = torch.ones(1, 1, 2, MOST_CHANNELS, dtype=dtype, device=device)
    try:
        fused_mean(Layer(1.0, q=x, k=x, v=x, grad_out=x), ALL, ALL, Fusable("product", None))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # compilers, linkers and drivers fail in many ways
        warnings.warn(
            f"heads are fused by plain operations, which take longer: Triton's kernels fail on {device} with "
            f"{type(error).__name__} ({' '.join(str(error).split())[:200]})",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def fuses(weights: Any, layer: Layer) -> TypeGuard[Fusable]:
    """Whether the kernels can make these weights of this layer."""
    if not isinstance(weights, Fusable) or layer.device.type != "cuda" or layer.bias is not None or layer.causal:
        return False
    read = [layer.q, layer.k] if weights.kind == "attention" else [layer.q, layer.k, layer.v, layer.grad_out]
    known = [one for one in read if one is not None]
    return (
        len(known) == len(read)
        and all(one.dtype == known[0].dtype and one.shape[-1] <= MOST_CHANNELS for one in known)
        and known[0].dtype in DTYPES
        and available(layer.device, known[0].dtype)
    )


def fused_mean(layer: Layer, images: slice, rows: slice, weights: Fusable) -> Tensor:
    """``mean_h W`` of these images and rows: (images, rows, M) float32."""
    from .kernels import mean_over_heads

    assert layer.q is not None and layer.k is not None
    gradient = weights.kind != "attention"
    shares = None if weights.shares is None else weights.shares[layer.name][images]
    with torch.cuda.device_of(layer.q):  # Triton starts kernels on the current device, which may be another one
        return mean_over_heads(
            layer.q.detach()[images, :, rows],
            layer.k.detach()[images],
            layer.grad_out[images, :, rows] if gradient and layer.grad_out is not None else None,
            layer.v.detach()[images] if gradient and layer.v is not None else None,
            layer.scale,
            weights.kind,
            shares,
            PRECISION,
        )
