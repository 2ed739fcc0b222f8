"""Relevance propagation (LRP): a backward pass that carries relevance instead of gradients.

While ``RelevanceMode`` is entered, every operation of a model is computed as usual, but autograd is given the rule that
passes relevance from its result to its operands in place of its derivative. Asking for "gradients" of a class's logit
then gives the relevance of whatever is asked for, batched, and through any model whose operations have rules.

The rules are those of Chefer, Gur and Wolf (CVPR 2021): α=1, β=0 for linear layers, shares of the result (deep Taylor)
for sums, products and means, and the identity for what is element-wise or normalises. Biases take no relevance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from .errors import ModelError, TargetError
from .types import Layer, Trace

Compute = Callable[[], Tensor]
# (relevance of the result, operands) -> relevance of each operand
Rule = Callable[..., tuple[Tensor, ...]]

INSTEAD = "methods that need no such rules: gae, attn_lrp"
TINY = 1e-9


def ratio(relevance: Tensor, result: Tensor) -> Tensor:
    """``relevance / result``, and 0 where the result is 0: nothing contributed, so nobody can be given a share."""
    shifted = result + TINY
    return torch.where(result == 0, 0.0, relevance / shifted.masked_fill_(shifted == 0, TINY))


# Rules --------------------------------------------------------------------------------------------------------------


def linear_rule(relevance: Tensor, x: Tensor, *, weight: Tensor, joint: bool) -> tuple[Tensor]:
    """α=1, β=0: positive contributions ``(x_i w_ji)⁺`` share the relevance of output j; the bias is no contribution.

    ``joint``: they share it among all of them. Otherwise those of two positive factors share it among themselves, and
    those of two negative factors share it once more, so that up to twice the relevance arrives.
    """
    x, weight = x.float(), weight.float()
    excitatory, inhibitory = weight.clamp(min=0), weight.clamp(max=0)
    first, second = F.linear(x.clamp(min=0), excitatory), F.linear(x.clamp(max=0), inhibitory)
    if joint:
        shares = ratio(relevance, first.add_(second))
        return (x * torch.where(x > 0, shares @ excitatory, shares @ inhibitory),)
    return (x * torch.where(x > 0, ratio(relevance, first) @ excitatory, ratio(relevance, second) @ inhibitory),)


def sum_rule(relevance: Tensor, left: Tensor, right: Tensor, *, renormalised: bool) -> tuple[Tensor, Tensor]:
    """Each summand's share of the sum. ``renormalised``: all that an image's branch gets is then scaled such that the
    two branches part the image's relevance as ``|a| : |b|``, where a and b are what they had got, summed.

    Without that, terms that cancel get large relevance of both signs, and more of it with every block.
    """
    shares = ratio(relevance, left.float() + right.float())
    parts = _folded(shares * left, left), _folded(shares * right, right)
    if not renormalised:
        return parts
    sums = [_of_image(part) for part in parts]
    whole = _of_image(relevance)
    both = sums[0].abs() + sums[1].abs()
    first, second = (
        part * ratio(ratio(total.abs(), both) * whole, total).view(-1, *[1] * (part.ndim - 1))
        for part, total in zip(parts, sums, strict=True)
    )
    return first, second


def product_rule(relevance: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Of a matrix product, half to each operand: each term's share of the entry that it is summed into."""
    left, right = left.float(), right.float()
    shares = ratio(relevance, left @ right) / 2
    return _folded(left * (shares @ right.mT), left), _folded(right * (left.mT @ shares), right)


def attention_rule(
    relevance: Tensor, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``softmax(q kᵀ · scale + bias) v``: two products with the identity between them, block by block."""
    layer, plain = Layer(scale, q=q, k=k, v=v, bias=bias, causal=causal, grad_out=relevance), Layer(1.0, q=q, k=k)
    found = [torch.zeros_like(operand, dtype=torch.float32) for operand in (q, k, v)]
    for images, rows in layer.blocks():
        weights = layer.attention(images, rows)
        queries, keys, values = q[images, :, rows].float(), k[images].float(), v[images].float()
        shares = ratio(relevance[images, :, rows], weights @ values) / 2
        found[2][images] += values * (weights.mT @ shares)
        shares = ratio(weights * (shares @ values.mT), plain.scores(images, rows)) / 2
        found[0][images, :, rows] = queries * (shares @ keys)
        found[1][images] += keys * (shares.mT @ queries)
    return found[0], found[1], found[2]


def mean_rule(relevance: Tensor, x: Tensor, *, compute: Callable[[Tensor], Tensor]) -> tuple[Tensor]:
    """Each entry's share of the mean, or sum, that it went into."""
    with torch.enable_grad():
        x = x.detach().float().requires_grad_()
        result = compute(x)
        (shares,) = torch.autograd.grad(result, x, ratio(relevance, result.detach()))
    return (x.detach() * shares,)


def half_rule(relevance: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Of an element-wise product, half to each factor."""
    return _folded(relevance / 2, left), _folded(relevance / 2, right)


def attention_relevance(layer: Layer, images: slice, rows: slice) -> Tensor:
    """Relevance of A itself, (images, H, rows, M) float32, of a layer whose ``grad_out`` is that of ``out = A v``.

    It is half of what ``out`` got; the other half is the values'.
    """
    assert layer.grad_out is not None and layer.v is not None
    weights, values = layer.attention(images, rows), layer.v[images].float()
    shares = ratio(layer.grad_out[images, :, rows].float(), weights @ values) / 2
    return weights.mul_(shares @ values.mT)


def _folded(relevance: Tensor, operand: Tensor) -> Tensor:
    """Summed over what the operand was broadcast along."""
    return relevance.sum_to_size(operand.shape)


def _of_image(relevance: Tensor) -> Tensor:
    """(B, ...) -> (B,). The paper's code sums over the batch as well, which is why it explains one image at a time."""
    return relevance.flatten(1).sum(1)


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
        self._softmax: Any = None
        self._begun = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        operands = list(_tensors(args, kwargs))
        if not operands:  # among them those that switch autograd on and off
            return func(*args, **kwargs)
        if self._calls >= self.first and any(map(carries, operands)):
            result = self._followed(func, name, args, kwargs)
        else:
            # So that what is made of parameters alone does not look as if it came from the pixels.
            with torch.no_grad():
                result = func(*args, **kwargs)
        if name == "softmax":
            self._softmax = result
        elif name == "scaled_dot_product_attention" or (name in PRODUCTS and args[0] is self._softmax):
            self._calls += 1
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
        return _linear(mode, func, left, right.mT)
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
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
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
UNCHANGED = {"layer_norm", "rms_norm", "group_norm", "softmax", "gelu", "silu", "relu", "sigmoid", "tanh", "neg"}
# These move entries about, so that their derivative passes relevance as it is.
_MOVES = (
    "__get__ __getitem__ cat chunk clone concat contiguous dropout expand expand_as flatten flip float movedim narrow "
    "permute repeat repeat_interleave reshape requires_grad_ select split squeeze stack swapaxes t to transpose "
    "type_as unbind unflatten unsqueeze view view_as"
)
ORDINARY = frozenset(_MOVES.split())


def relevances(trace: Trace, mode: RelevanceMode) -> Trace:
    """The trace's look once more, with relevance where gradients would be: ``grad_out`` of the layers from
    ``mode.first`` on, and ``token_gradients``. A class's logit starts with relevance 1, whatever its value."""
    return trace.inquiry.again(trace.pixels, {"attention", "tokens", "gradient"}, mode)
