"""Relevance propagation as backward rules: a forward as it is, gradients as a rule wants them.

Relevance of x is ``x ⊙ c``, where c is what the backward pass leaves at x once the backward of some operations is
swapped; one forward and one backward propagate it. One ``TorchFunctionMode`` swaps *operations*, so nothing of a model
is touched; the mode is local to the thread and gone when the ``with`` block ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

from .errors import ModelError, OptionError
from .options import Range
from .types import Trace

Level = Literal["patches", "pixels"]
Gamma = Annotated[float, Range(0.0, 1000.0)]
Epsilon = Annotated[float, Range(0.0, 1000.0)]

SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
MATRIX_PRODUCT = (torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__)
PRODUCT = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)
SIGMOID = (torch.sigmoid, Tensor.sigmoid)
RSQRT = (torch.rsqrt, Tensor.rsqrt)


class Rules(TorchFunctionMode):
    """While it is entered, gradients flow by these rules; what an operation returns stays the same, to rounding.

    ``attention``: "detach", attention is a constant that mixes values (Ali et al. 2022); "uniform", each factor of a
    matrix product gets half of the relevance, and the softmax keeps its Jacobian (Achtibat et al. 2024).
    ``normalisation``: "detach_std", the divisor of layer, group, RMS and L2 norms is a constant.
    ``activation``: "identity", ``f(x) = x · (f(x) / x)`` with the fraction a constant, for GELU and SiLU; a sigmoid,
    which elsewhere in a transformer is a gate, is a constant too (so quick GELU spelt out is covered).
    ``gate``: "half", a product of such an activation and another tensor gives half of its relevance to either.
    ``linear_gamma``, ``conv_gamma``, ``epsilon``: of linear layers and 2-D convolutions, see ``_stressed``.
    """

    def __init__(
        self,
        *,
        attention: Literal["detach", "uniform"] | None = None,
        normalisation: Literal["detach_std"] | None = None,
        activation: Literal["identity"] | None = None,
        gate: Literal["half"] | None = None,
        linear_gamma: float = 0.0,
        conv_gamma: float = 0.0,
        epsilon: float = 0.0,
    ) -> None:
        super().__init__()
        self.linear_gamma, self.conv_gamma, self.epsilon = linear_gamma, conv_gamma, epsilon
        self._identity = activation is not None
        self._weights: Tensor | None = None  # what the last softmax over scores returned
        self._activated: Tensor | None = None  # what the last activation returned
        self._rules: dict[Any, Callable[..., Any]] = {F.multi_head_attention_forward: _hidden}
        if attention == "detach":
            self._rules |= {F.scaled_dot_product_attention: _constant_attention}
            self._rules |= dict.fromkeys(SOFTMAX, _constant_softmax)
        elif attention == "uniform":
            self._rules |= {F.scaled_dot_product_attention: _uniform_attention}
            self._rules |= dict.fromkeys(SOFTMAX, self._uniform_softmax)
            self._rules |= dict.fromkeys(MATRIX_PRODUCT, self._uniform_product)
        if normalisation:
            self._rules |= {
                F.layer_norm: _layer_norm,
                F.group_norm: _group_norm,
                F.rms_norm: _rms_norm,
                F.normalize: _normalise,
            }
            self._rules |= dict.fromkeys(RSQRT, _constant)  # norms spelt out multiply by 1 / std
        if activation or gate:
            self._rules |= dict.fromkeys((F.gelu, F.silu), self._activate)
        if activation:
            self._rules |= dict.fromkeys(SIGMOID, _constant)
        if gate:
            self._rules |= dict.fromkeys(PRODUCT, self._gate)
        if linear_gamma or epsilon:
            self._rules[F.linear] = self._linear
        if conv_gamma or epsilon:
            self._rules[F.conv2d] = self._convolution

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = self._rules.get(func)
        return func(*args, **(kwargs or {})) if rule is None else rule(func, *args, **(kwargs or {}))

    def __exit__(self, *exception: Any) -> None:
        self._weights = self._activated = None  # they would keep the graph alive
        super().__exit__(*exception)

    def _uniform_softmax(self, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if input.ndim != 4:
            return func(input, *args, **kwargs)
        # Half for attention as a factor of A v, and half for q and for k as factors of the scores.
        weights = func(_scaled(input, 0.25), *args, **kwargs)
        self._weights = weights
        return weights

    def _uniform_product(self, func: Any, input: Tensor, other: Tensor) -> Tensor:
        if input is not self._weights:
            return func(input, other)
        self._weights = None
        return func(input, _scaled(other, 0.5))

    def _activate(self, func: Any, input: Tensor, **kwargs: Any) -> Tensor:
        if self._identity and input.requires_grad:
            kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}

            def run(x: Tensor) -> tuple[Tensor, ...]:
                out = func(x, **kwargs)
                return out, (out / x).masked_fill_(x == 0, 0.5)

            activated: Any = _Swapped.apply(input, run, lambda gradient, slope: gradient * slope)
        else:
            activated = func(input, **kwargs)
        self._activated = activated
        return activated

    def _gate(self, func: Any, input: Any, other: Any, **kwargs: Any) -> Tensor:
        product = func(input, other, **kwargs)
        if self._activated is not None and (input is self._activated or other is self._activated):
            factor = other if input is self._activated else input
            # A vector of parameters that scales channels is no gate.
            if isinstance(factor, Tensor) and factor.shape == self._activated.shape and factor.requires_grad:
                self._activated = None
                return _scaled(product, 0.5)
        return product

    def _linear(self, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not input.requires_grad:
            return func(input, weight, bias)
        return _stressed(func, torch.matmul, input, weight, bias, self.linear_gamma, self.epsilon)

    def _convolution(
        self,
        func: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if not input.requires_grad:
            return func(input, weight, bias, stride, padding, dilation, groups)
        if isinstance(padding, str):
            raise OptionError(
                f"convolutions padded by name ({padding!r}) have no rule: set conv_gamma and epsilon to 0"
            )
        rest, size = (stride, padding, dilation, groups), input.shape

        def apply(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            return func(x, w, b, *rest)

        def transposed(gradient: Tensor, w: Tensor) -> Tensor:
            return conv2d_input(size, w, gradient, *rest)

        return _stressed(apply, transposed, input, weight, bias, self.conv_gamma, self.epsilon)


def relevance(trace: Trace, level: Level) -> Tensor:
    """``x ⊙ ∂y/∂x`` by the rules of the look, summed over channels.

    Of the tokens that enter the first block, on the patch grid (B, h, w); or of the pixels, (B, H, W).
    """
    if level == "pixels":
        assert trace.pixel_gradient is not None
        return (trace.pixels.float() * trace.pixel_gradient.float()).sum(1)
    return trace.patches((trace.tokens[0].float() * trace.token_gradients[0].float()).sum(-1))


def needed_at(level: Level) -> set[str]:
    """What a look must keep for ``relevance``."""
    return {"pixels"} if level == "pixels" else {"tokens"}


class _Swapped(torch.autograd.Function):
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


def _scaled(x: Tensor, factor: float) -> Tensor:
    """x, whose gradient will be multiplied by a factor."""
    if not x.requires_grad:
        return x
    return _Swapped.apply(x, lambda x: (x.view_as(x),), lambda gradient: gradient * factor)  # type: ignore[return-value]


def _hidden(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    raise ModelError(
        "relevance cannot be propagated through torch.nn.MultiheadAttention, whose operations are hidden in one call; "
        "methods that need no such rules: input_x_gradient, integrated_gradients"
    )


def _constant(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    return func(*args, **kwargs).detach()


# Attention -----------------------------------------------------------------------------------------------------------


def _constant_attention(
    func: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    mask = None if attn_mask is None else attn_mask.detach()
    return func(query.detach(), key.detach(), value, mask, *args, **kwargs)


def _uniform_attention(func: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    # See _uniform_softmax; scaling what goes in leaves the fused kernel as it is.
    return func(_scaled(query, 0.25), _scaled(key, 0.25), _scaled(value, 0.5), *args, **kwargs)


def _constant_softmax(func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return func(input.detach() if input.ndim == 4 else input, *args, **kwargs)


# Normalisation: y = (x - mean) / std · weight + bias, where only the divisor is a constant ---------------------------


def _layer_norm(
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if not input.requires_grad:
        return func(input, normalized_shape, weight, bias, eps)
    dims = tuple(range(-len(normalized_shape), 0))

    def run(x: Tensor) -> tuple[Tensor, ...]:
        out, _, inverse = torch.native_layer_norm(x, normalized_shape, weight, bias, eps)
        return out, inverse

    def rule(gradient: Tensor, inverse: Tensor) -> Tensor:
        gradient = _times(gradient, weight) * inverse
        return gradient.sub_(gradient.mean(dims, keepdim=True))

    return _Swapped.apply(input, run, rule)  # type: ignore[return-value]


def _group_norm(
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
        out, _, inverse = torch.native_group_norm(
            x.contiguous(), weight, bias, images, channels, positions, num_groups, eps
        )
        return out, inverse

    def rule(gradient: Tensor, inverse: Tensor) -> Tensor:
        scales = None if weight is None else weight.view(-1, *[1] * (gradient.ndim - 2))
        grouped = _times(gradient, scales).reshape(images, num_groups, -1) * inverse[..., None]
        return (grouped - grouped.mean(-1, keepdim=True)).view_as(gradient)

    return _Swapped.apply(input, run, rule)  # type: ignore[return-value]


def _rms_norm(
    func: Any, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    least = torch.finfo(input.dtype).eps if eps is None else eps

    def run(x: Tensor) -> tuple[Tensor, ...]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return func(x, normalized_shape, weight, eps), (wide.square().mean(dims, keepdim=True) + least).rsqrt()

    return _Swapped.apply(input, run, lambda gradient, inverse: _times(gradient, weight) * inverse)  # type: ignore[return-value]


def _normalise(
    func: Any, input: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    def run(x: Tensor) -> tuple[Tensor, ...]:
        length = torch.linalg.vector_norm(x, p, dim, keepdim=True).clamp_min(eps)
        return x / length, length

    return _Swapped.apply(input, run, lambda gradient, length: gradient / length)  # type: ignore[return-value]


def _times(gradient: Tensor, weight: Tensor | None) -> Tensor:
    """The product, in float32 at least: a mean of many half-precision numbers would not be one."""
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return wide if weight is None else wide * weight


# Linear layers and convolutions --------------------------------------------------------------------------------------


def _stressed(
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
        found = transposed(gradient * share.abs(), weight)
        if x is not None:
            found = found * (1 + half) + transposed(gradient * share, weight.abs()) * x.sign() * half
        return found

    return _Swapped.apply(input, run, rule)  # type: ignore[return-value]
