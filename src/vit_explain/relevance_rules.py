"""How relevance is shared out: from the result of an operation to its operands, as Chefer, Gur and Wolf (CVPR 2021) do.

α=1, β=0 for linear layers, and shares of the result (deep Taylor) for sums, products and means. Each rule takes the
relevance of the result and the operands, and gives the relevance of each operand, in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .layer import Layer

TINY = 1e-9


def ratio(relevance: Tensor, result: Tensor) -> Tensor:
    """``relevance / result``, and 0 where the result is 0: nothing contributed, so nobody can be given a share."""
    shifted = result + TINY
    return torch.where(result == 0, 0.0, relevance / shifted.masked_fill_(shifted == 0, TINY))


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
    return (shares @ values.mT).mul_(weights)


def _folded(relevance: Tensor, operand: Tensor) -> Tensor:
    """Summed over what the operand was broadcast along."""
    return relevance.sum_to_size(operand.shape)


def _of_image(relevance: Tensor) -> Tensor:
    """(B, ...) -> (B,). The paper's code sums over the batch as well, which is why it explains one image at a time."""
    return relevance.flatten(1).sum(1)
