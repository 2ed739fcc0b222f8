"""The kernels beside plain operations, for several shapes: ``python tests/fused_cases.py cpu|cuda``.

On a processor with ``TRITON_INTERPRET=1`` in the environment, before Triton is imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "src"))
from vit_explain import attention_paths as paths
from vit_explain import fused
from vit_explain.layer import Layer

# (B, H, queries, keys, channels, channels of values): not of whole tiles, one query, other channels
SHAPES = ((2, 3, 70, 70, 16, 16), (1, 2, 1, 133, 24, 40), (2, 1, 65, 64, 64, 64))
TOLERANCE = 5e-6


def layer(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Layer:
    b, h, n, m, d, dv = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    # As models leave them: views of (B, N, H, D), or of q, k and v in one.
    q, k = drawn(b, n, h, d).transpose(1, 2), drawn(b, m, 2, h, d)[:, :, 1].transpose(1, 2)
    return Layer(d**-0.5, q=q, k=k, v=drawn(b, h, m, dv), grad_out=drawn(b, n, h, dv).transpose(1, 2), name="one")


def compare(device: str) -> int:
    """Every kind of weights of every shape; how many were compared."""
    fused.PRECISION = "ieee" if device == "cpu" else fused.PRECISION
    dtypes = [torch.float32, torch.float16]  # the interpreter does not know bfloat16
    number = 0
    for shape in SHAPES:
        for dtype in dtypes if device == "cpu" else [*dtypes, torch.bfloat16]:
            call = layer(shape, dtype, device)
            shares = {"one": torch.rand(shape[:2], generator=torch.Generator().manual_seed(1)).to(device)}
            kinds = [paths.plain, paths.product, paths.positive_product, paths.positive_gradient, paths.guided]
            weighted = fused.Fusable(
                "attention", lambda a, i, r, s=shares: a.attention(i, r) * s["one"][i, :, None, None], shares
            )
            for weights in (*kinds, weighted):
                for rows in (slice(0, shape[2]), slice(shape[2] // 2, shape[2])):
                    for images in (slice(0, shape[0]), slice(shape[0] - 1, shape[0])):
                        found = fused.fused_mean(call, images, rows, weights)
                        expected = weights(call, images, rows).mean(1)
                        error = float((found - expected).abs().max() / expected.abs().max())
                        about = (weights.kind, shape, dtype, error)
                        assert found.dtype == torch.float32 and error < TOLERANCE, about
                        number += 1
    return number


if __name__ == "__main__":
    print(f"{compare(sys.argv[1])} compared")
