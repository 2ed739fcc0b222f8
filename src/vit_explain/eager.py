"""Attention that a model's own code spells out: a softmax whose result is multiplied with values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
PRODUCT = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__}
# What may lie between softmax and product, and in evaluation leaves the weights as they are, up to rounding.
BETWEEN = {
    F.dropout,
    torch.dropout,
    Tensor.to,
    Tensor.type,
    Tensor.type_as,
    Tensor.half,
    Tensor.bfloat16,
    Tensor.float,
    Tensor.double,
    Tensor.contiguous,
}
# What some models make of the weights before values are multiplied: mixtures over heads (CaiT) or with attention of
# positions (ConViT). What multiplies the values is what counts, and it may then be negative.
MIXING = {Tensor.permute, F.linear}
ARITHMETIC = {
    *(getattr(Tensor, f"__{name}__") for name in ("add", "radd", "mul", "rmul", "truediv", "itruediv")),
    Tensor.add,
    Tensor.mul,
    Tensor.div,
    torch.add,
    torch.mul,
    torch.div,
}


@dataclass(frozen=True)
class Product:
    """Weights times values, in the shapes that ``types.Layer`` has, or with windows in a dimension of their own; and
    the product's own shape from and to these."""

    weights: Tensor  # (B, H, N, M)
    values: Tensor  # (B, H, M, Dv)
    parted: Callable[[Tensor], Tensor]  # what the model's product returned -> (B, H, N, Dv)
    joined: Callable[[Tensor], Tensor]  # and back


class Eager:
    """Follows the result of the last softmax to the product that it is the left factor of, if to any.

    ``images``: B, to part images from heads where code has both in one dimension, (B·H, N, M).
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self._weights: Tensor | None = None
        self._known: list[Tensor] = []  # results of softmax, and what was made of them, since the last product
        self._turned: Tensor | None = None  # the same, (…, M, N)

    def follows(self, func: Any) -> bool:
        """Whether this operation could be of interest."""
        return self._weights is not None or func in SOFTMAX

    def follow(self, func: Any, args: Sequence[Any], result: Any) -> None:
        """To be told of every operation that is no product of attention."""
        if func in SOFTMAX:
            self._weights = result if result.ndim in (3, 4, 5) else None
            self._known = [one for one in self._known if one.shape == result.shape] + [result]
        elif not args:
            return
        elif func in BETWEEN | MIXING and args[0] is self._weights:
            self._weights = result
        elif func is Tensor.transpose and args[0] is self._weights and set(args[1:]) == {-1, -2}:
            self._turned = result
        elif func in ARITHMETIC and self._mixes(args[:2], result):
            self._weights = result
            self._known.append(result)

    def _mixes(self, args: Sequence[Any], result: Tensor) -> bool:
        """Whether known weights were scaled, or added up: nothing else of their size takes part."""
        known = [any(one is weights for weights in self._known) for one in args]
        large = [isinstance(one, Tensor) and one.shape == result.shape for one in args]
        return any(known) and all(is_known or not is_large for is_known, is_large in zip(known, large, strict=True))

    def product(self, func: Any, args: Sequence[Any]) -> Product | None:
        """The operation as a product of attention; None where it is none."""
        if self._weights is None:
            return None
        found = None
        if func in PRODUCT and args[0] is self._weights:
            same = list(range(self._weights.ndim))
            found = self._product(args[1], same, same)
        elif func in PRODUCT and self._turned is not None and args[1] is self._turned:  # (…, Dv, M) (…, M, N)
            rank = self._weights.ndim
            turned = [*range(rank - 2), rank - 1, rank - 2]
            found = self._product(args[0], turned, turned)
        elif func is torch.einsum and isinstance(args[0], str):
            found = self._einsum(args[0], args[1] if isinstance(args[1], (list, tuple)) else args[1:])
        if found is not None:
            self._weights = self._turned = None
            self._known = []
        return found

    def _einsum(self, equation: str, operands: Sequence[Tensor]) -> Product | None:
        places = [place for place, one in enumerate(operands) if one is self._weights]
        inputs, arrow, output = equation.replace(" ", "").partition("->")
        names = inputs.split(",")
        if len(places) != 1 or not arrow or len(names) != 2:
            return None
        weights, values = names[places[0]], names[1 - places[0]]
        *heads, queries, keys = weights
        width = set(values) - set(weights)
        wanted_values, wanted_output = [*heads, keys, *width], [*heads, queries, *width]
        if sorted(values) != sorted(wanted_values) or sorted(output) != sorted(wanted_output):
            return None
        order = [output.index(name) for name in wanted_output]
        return self._product(operands[1 - places[0]], [values.index(name) for name in wanted_values], order)

    def _product(self, values: Tensor, values_order: list[int], order: list[int]) -> Product | None:
        """``*_order``: which dimensions of the values, and of the product, are (B, H, ...) or (B·H, ...)."""
        weights = self._weights
        assert weights is not None
        merged = weights.ndim == 3
        if values.ndim != weights.ndim or (merged and len(weights) % self.images):
            return None
        back = [order.index(place) for place in range(len(order))]

        def parted(x: Tensor, order: list[int] = order) -> Tensor:
            x = x.permute(order) if order != sorted(order) else x
            return x.unflatten(0, (self.images, -1)) if merged else x

        def joined(x: Tensor) -> Tensor:
            x = x.flatten(0, 1) if merged else x
            return x.permute(back) if back != sorted(back) else x

        together = weights.unflatten(0, (self.images, -1)) if merged else weights
        return Product(together, parted(values, values_order), parted, joined)
