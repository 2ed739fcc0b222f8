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

from .eager import SOFTMAX, Eager
from .errors import ModelError, OptionError
from .multihead import WHOLE, multi_head_attention
from .options import Range
from .swapped import (
    Swapped,
    constant,
    constant_attention,
    constant_softmax,
    group_norm,
    layer_norm,
    normalise,
    rms_norm,
    scaled,
    stressed,
    uniform_attention,
    uniform_product,
)
from .types import Trace

Level = Literal["patches", "pixels"]
Gamma = Annotated[float, Range(0.0, 1000.0)]
Epsilon = Annotated[float, Range(0.0, 1000.0)]

PRODUCT = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)
SUM = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
GATES = (torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.erf, Tensor.erf)
TANH = (torch.tanh, Tensor.tanh, F.tanh)
# What norms that are spelt out divide by, or multiply with.
DIVISORS = (
    *(torch.rsqrt, Tensor.rsqrt, torch.sqrt, Tensor.sqrt, torch.std, Tensor.std),
    *(torch.norm, Tensor.norm, torch.linalg.norm, torch.linalg.vector_norm),
)
POWER = (torch.pow, Tensor.pow, Tensor.__pow__)


class Rules(TorchFunctionMode):
    """While it is entered, gradients flow by these rules; what an operation returns stays the same, to rounding.

    ``attention``: "detach", attention is a constant that mixes values (Ali et al. 2022); "uniform", each factor of a
    matrix product gets half of the relevance, and the softmax keeps its Jacobian (Achtibat et al. 2024). Attention that
    a model spells out is followed from the softmax to the product with values, see ``eager``; where a softmax over the
    last of three dimensions or more comes to no such product, leaving is refused with a ``ModelError``.
    ``normalisation``: "detach_std", the divisor of layer, group, RMS and L2 norms is a constant; of those that a model
    spells out, any square root, standard deviation or norm is.
    ``activation``: "identity", ``f(x) = x · (f(x) / x)`` with the fraction a constant, for GELU and SiLU; a sigmoid,
    which elsewhere in a transformer is a gate, is a constant too, and so are erf and 1 + tanh: that covers what is
    spelt out. Other activations that are not linear in pieces (Mish, ELU) keep their derivative and do not conserve.
    ``gate``: "half", a product of such an activation and another tensor gives half of its relevance to either.
    ``linear_gamma``, ``conv_gamma``, ``epsilon``: of linear layers and 2-D convolutions, see ``stressed``.
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
        self._uniform = attention == "uniform"
        self._eager = Eager()
        self._activated: Tensor | None = None  # what the last activation returned
        self._tanh: Tensor | None = None  # and the last tanh
        self._rules: dict[Any, Callable[..., Any]] = {WHOLE: self._opened}
        if attention == "detach":
            self._rules |= {F.scaled_dot_product_attention: constant_attention}
            self._rules |= dict.fromkeys(SOFTMAX, constant_softmax)
        elif attention == "uniform":
            self._rules |= {F.scaled_dot_product_attention: uniform_attention}
        if normalisation:
            self._rules |= {
                F.layer_norm: layer_norm,
                F.group_norm: group_norm,
                F.rms_norm: rms_norm,
                F.normalize: normalise,
            }
            self._rules |= dict.fromkeys(DIVISORS, constant) | dict.fromkeys(POWER, self._root)
        if activation or gate:
            self._rules |= dict.fromkeys((F.gelu, F.silu), self._activate)
        if activation:
            self._rules |= dict.fromkeys(GATES, constant)
            self._rules |= dict.fromkeys(TANH, self._remembered_tanh) | dict.fromkeys(SUM, self._one_and_tanh)
        if gate:
            self._rules |= dict.fromkeys(PRODUCT, self._gate)
        if linear_gamma or epsilon:
            self._rules[F.linear] = self._linear
        if conv_gamma or epsilon:
            self._rules[F.conv2d] = self._convolution

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = self._rules.get(func)
        if not self._uniform or not self._eager.follows(func):
            return func(*args, **kwargs) if rule is None else rule(func, *args, **kwargs)
        product = self._eager.product(func, args, kwargs)
        if product is not None:
            return uniform_product(product.compute, *product.factors)
        result = func(*args, **kwargs) if rule is None else rule(func, *args, **kwargs)
        self._eager.follow(func, args, kwargs, result)
        return result

    def __exit__(self, *exception: Any) -> None:
        lost = self._eager.unpaired
        self._eager, self._activated, self._tanh = Eager(), None, None  # they would keep the graph alive
        super().__exit__(*exception)
        if lost and exception[0] is None:
            raise ModelError(
                "this model makes something of a softmax that AttnLRP's uniform rule for attention is not defined for: "
                "there are attention='detach', and methods that need no such rule: gae, cp_lrp"
            )

    def _opened(self, func: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        return multi_head_attention(self, *args, **kwargs)

    def _root(self, func: Any, input: Any, exponent: Any) -> Tensor:
        root = isinstance(exponent, float) and abs(exponent) == 0.5
        return constant(func, input, exponent) if root else func(input, exponent)

    def _remembered_tanh(self, func: Any, input: Tensor, **kwargs: Any) -> Tensor:
        result = func(input, **kwargs)
        self._tanh = result
        return result

    def _one_and_tanh(self, func: Any, input: Any, other: Any, **kwargs: Any) -> Tensor:
        """As GELU by tanh has it; alone it is an activation, as in poolers."""
        added = func(input, other, **kwargs)
        if self._tanh is None or not (input is self._tanh or other is self._tanh):
            return added
        rest = other if input is self._tanh else input
        self._tanh = None
        return added.detach() if isinstance(rest, (int, float)) and rest == 1 else added

    def _activate(self, func: Any, input: Tensor, **kwargs: Any) -> Tensor:
        if self._identity and input.requires_grad:
            kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}

            def run(x: Tensor) -> tuple[Tensor, ...]:
                out = func(x, **kwargs)
                return out, out, x

            def rule(gradient: Tensor, out: Tensor, x: Tensor) -> Tensor:
                return (out / x).nan_to_num_(0.5).mul_(gradient)  # f(0) / 0 is a half for all of them

            activated: Any = Swapped.apply(input, run, rule)
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
                return scaled(product, 0.5)
        return product

    def _linear(self, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not input.requires_grad:
            return func(input, weight, bias)
        return stressed(func, torch.matmul, input, weight, bias, self.linear_gamma, self.epsilon)

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

        return stressed(apply, transposed, input, weight, bias, self.conv_gamma, self.epsilon)


def relevance(trace: Trace, level: Level, *, conv_gamma: float = 0.0) -> Tensor:
    """``x ⊙ ∂y/∂x`` by the rules of the look, summed over channels.

    Of the tokens that enter the first block, on the patch grid (B, h, w); or of the pixels, (B, H, W). ``conv_gamma``:
    that of the look, refused where it does nothing.
    """
    if level == "patches" and conv_gamma:
        raise OptionError(
            "conv_gamma is of the convolutions between pixels and tokens, which relevance does not come to at "
            "level='patches': take level='pixels', or leave it at 0"
        )
    if level == "pixels":
        assert trace.pixel_gradient is not None
        return (trace.pixels.float() * trace.pixel_gradient.float()).sum(1)
    return trace.patches(trace.impact(0))


def needed_at(level: Level) -> set[str]:
    """What a look must keep for ``relevance``."""
    return {"pixels"} if level == "pixels" else {"tokens"}
