"""Relevance propagation (LRP): a backward pass that carries relevance instead of gradients.

While ``RelevanceMode`` is entered, every operation of a model is computed as usual, but autograd is given the rule that
passes relevance from its result to its operands in place of its derivative. Asking for "gradients" of a class's logit
then gives the relevance of whatever is asked for, batched, and through any model whose operations have rules.

The rules are those of Chefer, Gur and Wolf (CVPR 2021), see ``relevance_rules``; the identity stands for what is
element-wise or normalises. Biases take no relevance.

A sum whose terms nearly cancel multiplies what it shares out, and every rounding with it. The rules compute in float32,
but of what the model computed: rounding a model's weights to bfloat16 alone changes maps of the bundled model by more
than half of their largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from .eager import Eager
from .errors import ModelError, TargetError
from .multihead import WHOLE, added, for_each_head, multi_head_attention
from .relevance_rules import attention_rule, half_rule, linear_rule, mean_rule, product_rule, sum_rule
from .types import Trace

Compute = Callable[[], Tensor]
# (relevance of the result, operands) -> relevance of each operand
Rule = Callable[..., tuple[Tensor, ...]]

INSTEAD = "methods that need no such rules: gae, attn_lrp"


# In place of derivatives --------------------------------------------------------------------------------------------


class _Ruled(torch.autograd.Function):
    """An operation whose backward is a rule."""

    @staticmethod
    def forward(ctx: Any, mode: RelevanceMode, rule: Rule, compute: Compute, *operands: Tensor) -> Tensor:
        ctx.mode, ctx.rule = mode, rule
        ctx.save_for_backward(*operands)
        return compute()

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor | None, ...]:
        ctx.mode.begin(relevance[0])
        return None, None, None, *ctx.rule(relevance[0].float(), *ctx.saved_tensors)


class _Unchanged(torch.autograd.Function):
    """An operation that relevance passes as if it were not there."""

    @staticmethod
    def forward(ctx: Any, mode: RelevanceMode, compute: Compute, x: Tensor) -> Tensor:
        ctx.mode, ctx.shape = mode, x.shape
        return compute()

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor | None, ...]:
        ctx.mode.begin(relevance[0])
        return None, None, relevance[0].sum_to_size(ctx.shape)


class RelevanceMode(TorchFunctionMode):
    """Relevance in place of gradients, for what a model computes while this is entered.

    ``first``: number of the block at whose input the relevance may stop; nothing is followed before its predecessor's
    attention. ``joint`` and ``renormalised``: see ``linear_rule`` and ``sum_rule``.
    """

    def __init__(self, first: int = 0, *, joint: bool = True, renormalised: bool = True) -> None:
        super().__init__()
        self.first, self.joint, self.renormalised = first, joint, renormalised
        self._calls = 0
        self._eager = Eager()
        self._begun = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        operands = list(_tensors(args, kwargs))
        if not operands:  # among them those that switch autograd on and off
            return func(*args, **kwargs)
        if func is WHOLE:
            return multi_head_attention(self, *args, **kwargs)
        product = self._eager.product(func, args, kwargs)
        if self._calls >= self.first and any(map(carries, operands)):
            result = self._followed(func, name, args, kwargs)
        else:
            # So that what is made of parameters alone does not look as if it came from the pixels.
            with torch.no_grad():
                result = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention or product is not None:
            self._calls += 1
        else:
            self._eager.follow(func, args, kwargs, result)
        return result

    def _followed(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name in UNCHANGED:
            return self.unchanged(partial(func, *args, **kwargs), next(_tensors(args, kwargs)))
        if name in HANDLERS:
            return HANDLERS[name](self, func, *args, **kwargs)
        result = func(*args, **kwargs)
        if name not in ORDINARY and any(one.requires_grad for one in _tensors((result,), {})):
            raise unruled(func)
        return result

    def begin(self, relevance: Tensor) -> None:
        """Called wherever relevance arrives; where it arrives first it is the derivative of y by the logits."""
        if not self._begun and bool((relevance < 0).any()):
            raise TargetError(
                "relevance is a positive whole that is shared out, so the target must be a class, or a function that "
                f"no logit lowers; for contrasts and probabilities take {INSTEAD}"
            )
        self._begun = True

    def ruled(self, rule: Rule, compute: Compute, *operands: Tensor) -> Tensor:
        return _Ruled.apply(self, rule, compute, *operands)

    def unchanged(self, compute: Compute, x: Tensor) -> Tensor:
        return _Unchanged.apply(self, compute, x)


def carries(operand: Any) -> bool:
    """Whether this came from the pixels and so has relevance; parameters and what is made of them have none."""
    return isinstance(operand, Tensor) and operand.requires_grad and not isinstance(operand, nn.Parameter)


def unruled(func: Any) -> ModelError:
    name = resolve_name(func) or getattr(func, "__name__", repr(func))
    return ModelError(f"relevance has no rule for {name}, which this model uses; there are {INSTEAD}")


def _tensors(args: Any, kwargs: Any) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (one for one in value if isinstance(one, Tensor))


# Which operation has which rule -------------------------------------------------------------------------------------


def _linear(mode: RelevanceMode, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if carries(weight):
        raise unruled(func)
    rule = partial(linear_rule, weight=weight.detach(), joint=mode.joint)
    return mode.ruled(rule, partial(F.linear, x, weight, bias), x)


def _product(mode: RelevanceMode, func: Any, left: Tensor, right: Tensor) -> Tensor:
    if right.ndim == 2 and not carries(right):
        return _linear(mode, func, left, right.detach().mT)  # of a parameter, which would no longer be one
    return mode.ruled(product_rule, partial(func, left, right), left, right)


def _attention(
    mode: RelevanceMode,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        key, value = for_each_head(query, key, value)
    attn_mask = added(attn_mask, query.dtype)
    compute = partial(func, query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    known = scale if scale is not None else query.shape[-1] ** -0.5
    rule = partial(attention_rule, bias=attn_mask, causal=is_causal, scale=known)
    return mode.ruled(rule, compute, query, key, value)


def _sum(mode: RelevanceMode, func: Any, left: Any, right: Any) -> Tensor:
    compute = partial(func, left, right)
    if carries(left) and carries(right):
        return mode.ruled(partial(sum_rule, renormalised=mode.renormalised), compute, left, right)
    return mode.unchanged(compute, left if carries(left) else right)  # the other is a bias


def _multiplication(mode: RelevanceMode, func: Any, left: Any, right: Any) -> Tensor:
    compute = partial(func, left, right)
    if carries(left) and carries(right):
        return mode.ruled(half_rule, compute, left, right)
    return mode.unchanged(compute, left if carries(left) else right)  # the other is a scale


def _division(mode: RelevanceMode, func: Any, left: Tensor, right: Any) -> Tensor:
    if carries(right):
        raise unruled(func)
    return mode.unchanged(partial(func, left, right), left)


def _mean(mode: RelevanceMode, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    def compute(x: Tensor) -> Tensor:
        return func(x, *args, **kwargs)

    return mode.ruled(partial(mean_rule, compute=compute), partial(compute, x), x)


PRODUCTS = {"matmul", "bmm", "__matmul__"}
HANDLERS: dict[str, Callable[..., Tensor]] = {
    "linear": _linear,
    "scaled_dot_product_attention": _attention,
    "mean": _mean,
    "sum": _mean,
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(("add", "__add__", "__radd__"), _sum),
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__"), _multiplication),
    **dict.fromkeys(("div", "divide", "true_divide", "__truediv__"), _division),
}
# Element-wise, or normalising: the identity.
UNCHANGED = {
    "layer_norm",
    "rms_norm",
    "group_norm",
    "normalize",
    "softmax",
    "gelu",
    "silu",
    "relu",
    "sigmoid",
    "tanh",
    "neg",
}
# These move entries about, so that their derivative passes relevance as it is.
_MOVES = (
    "__get__ __getitem__ bfloat16 cat chunk clone concat contiguous double dropout expand expand_as flatten flip float "
    "half movedim narrow permute repeat repeat_interleave reshape requires_grad_ select split squeeze stack swapaxes t "
    "to transpose type type_as unbind unflatten unsqueeze view view_as"
)
ORDINARY = frozenset(_MOVES.split())


def relevances(trace: Trace, mode: RelevanceMode) -> Trace:
    """The trace's look once more, with relevance where gradients would be: ``grad_out`` of the layers from
    ``mode.first`` on, and ``token_gradients``. A class's logit starts with relevance 1, whatever its value."""
    return trace.inquiry.again(trace.pixels, {"attention", "tokens", "gradient"}, mode)


def imprecise(seen: Trace) -> list[list[str]]:
    """The warning, an image each, where the model computes in less than float32, from what ``relevances`` found."""
    dtypes = [one.dtype for layer in seen.layers for one in (layer.q, layer.v, layer.probabilities) if one is not None]
    least = min((seen.pixels.dtype, *dtypes), key=lambda dtype: dtype.itemsize)
    if least.itemsize <= 2:
        how = f"computes in {str(least).removeprefix('torch.')}"
    elif least == torch.float32 and seen.pixels.is_cuda and _rounded_to_tf32():
        how = "makes its products in TF32"
    else:
        return []
    warning = f"the model {how}, which relevance of terms that nearly cancel magnifies: take float32"
    return [[warning] for _ in seen.pixels]


def _rounded_to_tf32() -> bool:
    """Whether products of float32 numbers are on CUDA devices."""
    settings: Any = torch.backends.cuda.matmul
    precision = getattr(settings, "fp32_precision", None)  # since PyTorch 2.9, where both ways to set it are seen
    return settings.allow_tf32 if precision is None else precision == "tf32"
