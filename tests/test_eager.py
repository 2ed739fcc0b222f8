"""Attention that code spells out, in the ways it is spelt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vit_explain.tap import AttentionTap

B, H, N, M, D = 2, 3, 5, 6, 4


def cast(scores: Tensor, values: Tensor) -> Tensor:
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    return torch.matmul(F.dropout(weights, 0.3, training=False), values)


# (scores, values) -> weights times values, (B, H, N, M) and (B, H, M, D) -> (B, H, N, D)
WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cast": cast,
    "matmul": lambda s, v: s.softmax(-1) @ v,
    "type_as": lambda s, v: torch.matmul(s.float().softmax(-1).type_as(v), v),
    "contiguous": lambda s, v: torch.softmax(s, -1).contiguous().matmul(v),
    "half": lambda s, v: torch.matmul(torch.softmax(s.float(), -1).half(), v.half()).to(v.dtype),
    "bfloat16": lambda s, v: torch.matmul(s.softmax(-1).bfloat16(), v.bfloat16()).to(v.dtype),
    "einsum": lambda s, v: torch.einsum("bhij,bhjd->bhid", s.softmax(-1), v),
    "einsum in another order": lambda s, v: torch.einsum(
        "bhnm, bmhd -> bnhd", s.softmax(-1), v.mT.permute(0, 3, 1, 2)
    ).transpose(1, 2),
    "einsum, values first": lambda s, v: torch.einsum("bhjd,bhij->bhid", v, s.softmax(-1)),
    "merged": lambda s, v: torch.bmm(s.flatten(0, 1).softmax(-1), v.flatten(0, 1)).unflatten(0, (B, H)),
    "merged einsum": lambda s, v: torch.einsum("bij,bjd->bid", s.flatten(0, 1).softmax(-1), v.flatten(0, 1)).unflatten(
        0, (B, H)
    ),
    "merged, fused": lambda s, v: F.scaled_dot_product_attention(
        torch.zeros(B * H, N, D, dtype=v.dtype), v.flatten(0, 1), v.flatten(0, 1), s.flatten(0, 1).to(v.dtype)
    ).unflatten(0, (B, H)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_seen(way, dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(B, H, N, M, generator=generator).to(dtype)
    values = torch.randn(B, H, M, D, generator=generator).to(dtype)
    direction = torch.randn(B, H, N, D, generator=generator)
    plain = WAYS[way](scores, values)
    with AttentionTap(gradient=True, values=True, images=B) as tap:
        output = WAYS[way](scores, values)
    torch.testing.assert_close(output.detach(), plain)
    (layer,) = tap.layers
    exact = dtype == torch.float32 and way not in ("half", "bfloat16")
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if exact else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(layer.attention(), scores.float().softmax(-1), **tolerance)
    assert layer.out is not None
    (layer.grad_out,) = torch.autograd.grad((output * direction).sum(), layer.out)
    torch.testing.assert_close(layer.attention_gradient(), direction @ values.float().mT, **tolerance)


def test_what_only_looks_like_attention():
    weights, values = torch.randn(B, H, N, N), torch.randn(B, H, N, D)
    with AttentionTap(gradient=False, values=True, images=B) as tap:
        gate = weights.softmax(-1)
        torch.einsum("bhnm,bhnd->bhmd", gate, values)  # sums over queries
        (gate * weights).to(torch.float32) @ values
        torch.randn(5, 4, 4).softmax(-1) @ torch.randn(5, 4, D)  # no multiple of the images
        torch.randn(2, 4).softmax(-1) @ torch.randn(4, D)
    assert tap.layers == []


def test_weights_that_are_scaled_and_added_up_before_values_are_multiplied():
    """As ConViT gates attention of positions, and CaiT mixes heads: what multiplies the values is kept."""
    scores, positions = torch.randn(2, B, H, N, M).unbind(0)
    values, gate = torch.randn(B, H, M, D), torch.rand(1, H, 1, 1)
    with AttentionTap(gradient=False, values=True, images=B) as tap:
        mixed = (1 - gate) * scores.softmax(-1) + gate * positions.softmax(-1)
        mixed /= mixed.sum(-1, keepdim=True)
        output = mixed @ values
    (layer,) = tap.layers
    torch.testing.assert_close(layer.attention() @ values, output)
    with AttentionTap(gradient=False, values=True, images=B) as tap:
        heads = torch.nn.functional.linear(scores.softmax(-1).permute(0, 2, 3, 1), torch.randn(H, H))
        output = heads.permute(0, 3, 1, 2) @ values
    (layer,) = tap.layers
    torch.testing.assert_close(layer.attention() @ values, output)


def test_weights_as_the_right_factor():
    scores, values = torch.randn(B, H, N, M), torch.randn(B, H, D, M)
    with AttentionTap(gradient=True, values=True, images=B) as tap:
        output = values @ scores.softmax(-1).transpose(-2, -1)
    (layer,) = tap.layers
    assert layer.out is not None and layer.out.shape == (B, H, N, D)
    torch.testing.assert_close(layer.attention() @ values.mT, output.mT)
