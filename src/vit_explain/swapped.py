"""Operations whose backward is a rule of relevance propagation instead of their derivative; see ``rules``.

What they return stays the same, to rounding. Each takes the operation itself and its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Swapped(torch.autograd.Function):
    """``run(x)[0]`` forwards; backwards ``rule(gradient, *run(x)[1:])``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[..., tuple[Tensor, ...]], rule: Callable[..., Tensor]) -> Tensor:
        out, *kept = run(x)
        ctx.save_for_backward(*kept)
        ctx.rule = rule
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.rule(*gradients, *ctx.saved_tensors), None, None


def scaled(x: Tensor, factor: float) -> Tensor:
    """x, whose gradient will be multiplied by a factor."""
    if not x.requires_grad:
        return x
    return Swapped.apply(x, lambda x: (x.view_as(x),), lambda gradient: gradient * factor)  # type: ignore[return-value]


def constant(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    return func(*args, **kwargs).detach()


# Attention -----------------------------------------------------------------------------------------------------------


def constant_attention(
    func: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    mask = None if attn_mask is None else attn_mask.detach()
    return func(query.detach(), key.detach(), value, mask, *args, **kwargs)


def uniform_attention(func: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return uniform_product(lambda query, value: func(query, key, value, *args, **kwargs), query, value)


def uniform_product(compute: Callable[[Tensor, Tensor], Tensor], weights: Tensor, values: Tensor) -> Tensor:
    """``weights``: attention, or what it is made of."""
    # See ``Rules``: a quarter for q and for k, and a half for v. Scaling around it leaves a fused kernel as it is, and
    # passes over no N × M numbers.
    return scaled(compute(weights, scaled(values, 2.0)), 0.25)


def constant_softmax(func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    # In two dimensions it makes probabilities of classes.
    return func(input.detach() if input.ndim > 2 else input, *args, **kwargs)


# Normalisation: y = (x - mean) / std · weight + bias, where only the divisor is a constant ---------------------------


def layer_norm(
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if not input.requires_grad:
        return func(input, normalized_shape, weight, bias, eps)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        out, _, inverse = torch.native_layer_norm(x, normalized_shape, weight, bias, eps)
        return out, inverse

    def rule(gradient: Tensor, inverse: Tensor) -> Tensor:
        # What passes through the deviation is a multiple of (x - mean) / std; with zeros in their place it is none, and
        # the norm's own backward, one operation, leaves the rest.
        nothing, none = torch.zeros_like(gradient), torch.zeros_like(inverse)
        found = torch.ops.aten.native_layer_norm_backward(
            gradient, nothing, normalized_shape, none, inverse, weight, bias, [True, False, False]
        )
        return found[0]

    return Swapped.apply(input, run, rule)  # type: ignore[return-value]


def group_norm(
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if not input.requires_grad:
        return func(input, num_groups, weight, bias, eps)
    images, channels = input.shape[:2]

    def run(x: Tensor) -> tuple[Tensor, ...]:
        positions = x[0, 0].numel()
        if weight is not None and x.device.type != "cpu":
            x = x.to(weight.dtype)  # as autocast does to ``func``, and not to what it calls
        out, _, inverse = torch.native_group_norm(
            x.contiguous(), weight, bias, images, channels, positions, num_groups, eps
        )
        return out, inverse

    def rule(gradient: Tensor, inverse: Tensor) -> Tensor:
        scales = None if weight is None else weight.view(-1, *[1] * (gradient.ndim - 2))
        grouped = _times(gradient, scales).reshape(images, num_groups, -1) * inverse[..., None]
        return (grouped - grouped.mean(-1, keepdim=True)).view_as(gradient)

    return Swapped.apply(input, run, rule)  # type: ignore[return-value]


def rms_norm(
    func: Any, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    least = torch.finfo(input.dtype).eps if eps is None else eps

    def run(x: Tensor) -> tuple[Tensor, ...]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return func(x, normalized_shape, weight, eps), (wide.square().mean(dims, keepdim=True) + least).rsqrt()

    return Swapped.apply(input, run, lambda gradient, inverse: _times(gradient, weight) * inverse)  # type: ignore[return-value]


def normalise(
    func: Any, input: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    def run(x: Tensor) -> tuple[Tensor, ...]:
        length = torch.linalg.vector_norm(x, p, dim, keepdim=True).clamp_min(eps)
        return x / length, length

    return Swapped.apply(input, run, lambda gradient, length: gradient / length)  # type: ignore[return-value]


def _times(gradient: Tensor, weight: Tensor | None) -> Tensor:
    """The product, in float32 at least: a mean of many half-precision numbers would not be one."""
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return wide if weight is None else wide * weight


# Linear layers and convolutions --------------------------------------------------------------------------------------


def stressed(
    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    transposed: Callable[[Tensor, Tensor], Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: float,
    epsilon: float,
) -> Tensor:
    """``z_k = Σ_i x_i w_ik + b_k`` whose contributions of z_k's own sign are stressed, in proportion 1 + γ to 1.

    ``R_i = Σ_k (p_ik + γ p_ik^±) / (z_k + γ Σ_j p_jk^± + ε sign z_k) · R_k`` with ``p_ik = x_i w_ik``, the bias among
    the summands, and ± the sign of z_k. For inputs x ≥ 0 and z_k > 0 that is the γ-rule with weights ``w + γ w⁺`` of
    Montavon et al. 2019; inputs of both signs need the general form of Andéol et al. 2021, else denominators vanish.

    As ``p⁺ = (p + |p|) / 2`` and ``p⁻ = (p - |p|) / 2``, one product with ``|x|`` and ``|w|`` is all that comes on top.
    """
    half = gamma / 2

    def run(x: Tensor) -> tuple[Tensor, ...]:
        out = apply(x, weight, bias)
        size = out.abs().to(torch.promote_types(out.dtype, torch.float32))  # γ times a sum may be no half any more
        whole = size * (1 + half) + epsilon
        if gamma:
            whole += apply(x.abs(), weight.abs(), None if bias is None else bias.abs()).to(whole.dtype) * half
        share = size.div_(whole.clamp_min_(torch.finfo(whole.dtype).tiny)).copysign_(out).to(out.dtype)
        return (out, share, x) if gamma else (out, share)

    def rule(gradient: Tensor, share: Tensor, x: Tensor | None = None) -> Tensor:
        own = weight.to(gradient.dtype)  # under a caller's autocast the forward's products were of another
        found = transposed(gradient * share.abs(), own)
        if x is not None:
            found = found * (1 + half) + transposed(gradient * share, own.abs()) * x.sign() * half
        return found

    return Swapped.apply(input, run, rule)  # type: ignore[return-value]
