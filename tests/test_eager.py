"""Attention that code spells out, in the ways it is spelt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vit_explain.errors import ModelError
from vit_explain.relprop import RelevanceMode
from vit_explain.rules import Rules
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


def test_weights_in_other_forms_before_values_are_multiplied():
    scores, values = torch.randn(B, H, N, M), torch.randn(B, H, M, D)
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda weights: weights.view(B, H, N, M).flatten(0, 1),  # as older code of transformers does for its caller
        lambda weights: weights.mT.contiguous().transpose(1, 2),
        lambda weights: weights.swapaxes(-2, -1).reshape(B, H, M, N).mT.reshape(B * H, N, M),
    ]
    for way in ways:
        with AttentionTap(gradient=False, values=True, images=B) as tap:
            output = torch.bmm(way(scores.flatten(0, 1).softmax(-1)), values.flatten(0, 1))
        (layer,) = tap.layers
        torch.testing.assert_close((layer.attention() @ values).flatten(0, 1), output)


def test_what_is_made_of_weights_beside_hides_no_product():
    scores, values = torch.randn(B, H, N, M), torch.randn(B, H, M, D)
    with AttentionTap(gradient=False, values=True, images=B) as tap:
        first, second = scores.softmax(-1), (2 * scores).softmax(-1)
        second.float().transpose(-2, -1).contiguous()
        first @ values
        second @ values
    torch.testing.assert_close(tap.layers[0].attention(), scores.softmax(-1))
    torch.testing.assert_close(tap.layers[1].attention(), (2 * scores).softmax(-1))


# Rules of relevance ---------------------------------------------------------------------------------------------------


def modified(way: Callable[[Tensor, Tensor], Tensor], kind: Any, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of scores and values by a rule."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(B, H, N, M, generator=generator).to(dtype).requires_grad_()
    values = torch.randn(B, H, M, D, generator=generator).to(dtype).requires_grad_()
    direction = torch.randn(B, H, N, D, generator=generator)
    with Rules(attention=kind):
        output = way(scores, values)
    found = torch.autograd.grad((output * direction).sum(), [scores, values], allow_unused=True)
    return [torch.zeros(()) if one is None or not one.any() else one.float() for one in found]


def fused(scores: Tensor, values: Tensor) -> Tensor:
    nothing = values.new_zeros(B, H, N, D)
    return F.scaled_dot_product_attention(nothing, torch.zeros_like(values), values, scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["uniform", "detach"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_has_the_rule_of_fused_attention(way, kind, dtype):
    exact = dtype == torch.float32 and way not in ("half", "bfloat16")
    for found, expected in zip(modified(WAYS[way], kind, dtype), modified(fused, kind, torch.float32), strict=True):
        tolerance = (1e-5 if exact else 0.03) * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["uniform", "detach"])
def test_windows_apart_have_the_rule_too(kind):
    """As in VOLO's outlook attention: (B, H, windows, N, M)."""
    expected = modified(lambda s, v: s.softmax(-1) @ v, kind, torch.float32)
    apart = modified(lambda s, v: (s.unsqueeze(2).softmax(-1) @ v.unsqueeze(2)).squeeze(2), kind, torch.float32)
    for found, same in zip(apart, expected, strict=True):
        torch.testing.assert_close(found, same)


@pytest.mark.parametrize(
    "way",
    [
        lambda s, v: (s.softmax(-1) - 0.5 * (2 * s).softmax(-1)) @ v,  # differential attention
        lambda s, v: torch.einsum("bhnm,bhmd->bnd", s.softmax(-1), v).unsqueeze(1),  # heads summed up
        lambda s, v: s.softmax(dim=3).square() @ v,
        lambda s, v: s.mT.softmax(-2).transpose(-2, -1) @ v,
    ],
)
def test_softmaxes_without_a_product_of_attention_are_refused(way):
    with pytest.raises(ModelError, match="uniform rule for attention is not defined"):
        modified(way, "uniform", torch.float32)
    assert not torch.overrides._get_current_function_mode_stack()
    modified(way, "detach", torch.float32)


def test_softmaxes_that_are_gates_keep_their_derivative():
    """As where channels are weighed (SKNet), or all tokens at once (MobileViT v2)."""

    def way(scores: Tensor, values: Tensor) -> Tensor:
        return (scores[:, :, :1].softmax(-1) * values.mT).sum(-1)[:, :, None]

    for found, expected in zip(
        modified(way, "uniform", torch.float32), modified(way, None, torch.float32), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_counted_where_relevance_may_stop(way):
    mode = RelevanceMode(first=2)
    with mode:
        for _ in range(2):
            WAYS[way](torch.randn(B, H, N, M), torch.randn(B, H, M, D))
    x = torch.randn(3, requires_grad=True)
    with mode:
        assert (x + x).requires_grad  # followed from here on, not before
    mode = RelevanceMode(first=2)
    with mode:
        WAYS[way](torch.randn(B, H, N, M), torch.randn(B, H, M, D))
        assert not (x + x).requires_grad
