"""Attention that a model's own code spells out: a softmax whose result is multiplied with values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    Tensor.clone,
}
# What some models make of the weights before values are multiplied: mixtures over heads (CaiT) or with attention of
# positions (ConViT). What multiplies the values is what counts, and it may then be negative.
MIXING = {Tensor.permute, F.linear}
FOLLOWED = BETWEEN | MIXING
TRANSPOSED = {Tensor.transpose, torch.transpose, Tensor.swapaxes}
TURNED = {Tensor.mT.__get__}  # type: ignore[attr-defined]
RESHAPED = {
    Tensor.view,
    Tensor.reshape,
    torch.reshape,
    Tensor.flatten,
    torch.flatten,
    Tensor.unflatten,
    Tensor.squeeze,
    Tensor.unsqueeze,
}
RANKS = (3, 4, 5)  # dimensions of weights: (B·H, N, M), (B, H, N, M), and with windows apart
PRODUCTS_BY_ENTRY = {Tensor.__mul__, Tensor.__rmul__, Tensor.mul, torch.mul}
ARITHMETIC = {
    *(getattr(Tensor, f"__{name}__") for name in ("add", "radd", "truediv", "itruediv")),
    *PRODUCTS_BY_ENTRY,
    Tensor.add,
    Tensor.div,
    torch.add,
    torch.div,
}


@dataclass(frozen=True)
class Product:
    """Weights times values, in the shapes that ``layer.Layer`` has, or with windows in a dimension of their own; and
    the product's own shape from and to these."""

    weights: Tensor  # (B, H, N, M)
    values: Tensor  # (B, H, M, Dv)
    parted: Callable[[Tensor], Tensor]  # what the model's product returned -> (B, H, N, Dv)
    joined: Callable[[Tensor], Tensor]  # and back
    factors: tuple[Tensor, Tensor]  # weights and values in the shapes that the operation takes
    compute: Callable[[Tensor, Tensor], Tensor]  # the operation, of such factors


@dataclass(frozen=True, eq=False)
class _Form:
    """A result of softmax, or what was made of some of them."""

    tensor: Tensor
    sources: frozenset[int]  # numbers of the softmaxes
    turned: bool = False  # (…, M, N)


class Eager:
    """Follows the results of softmax to the products that they are the weights of, if to any.

    ``images``: B, to part images from heads where code has both in one dimension, (B·H, N, M).
    """

    def __init__(self, images: int = 1) -> None:
        self.images = images
        self._forms: list[_Form] = []
        self._softmaxes = 0
        self._awaited: set[int] = set()  # softmaxes over keys that no product, and no gate, was made of so far
        self._astray = False

    @property
    def unpaired(self) -> bool:
        """Whether a softmax over the last dimension, which is how attention is made, came to no product with values
        that is understood; one that is multiplied entry by entry with something larger is a gate, and does not count.
        """
        return self._astray or bool(self._awaited)

    def follows(self, func: Any) -> bool:
        """Whether this operation could be of interest."""
        return bool(self._forms) or func in SOFTMAX

    def follow(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """To be told of every operation that is no product of attention."""
        if func in SOFTMAX:
            self._begin(args, kwargs, result)
        elif func in ARITHMETIC:
            self._arithmetic(func, args[:2], result)
        elif args and isinstance(result, Tensor) and (form := self._form(args[0])) is not None:
            if func in FOLLOWED or (func in RESHAPED and result.shape[-2:] == form.tensor.shape[-2:]):
                self._forms.append(replace(form, tensor=result))
            elif func in TURNED or (func in TRANSPOSED and _of_the_last_two(form.tensor, args[1:])):
                self._forms.append(replace(form, tensor=result, turned=not form.turned))

    def _begin(self, args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> None:
        # Others of its size may be added to it; what has another size is of no use any more.
        self._forms = [form for form in self._forms if form.tensor.shape == result.shape]
        if result.ndim not in RANKS:
            return
        self._softmaxes += 1
        self._forms.append(_Form(result, frozenset({self._softmaxes})))
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if dim in (-1, result.ndim - 1) and result.requires_grad:
            self._awaited.add(self._softmaxes)

    def _form(self, tensor: Any) -> _Form | None:
        """The last one first: an operation in place returns what it was given."""
        return next((form for form in reversed(self._forms) if form.tensor is tensor), None)

    def _arithmetic(self, func: Any, args: Sequence[Any], result: Tensor) -> None:
        """Known weights may be scaled, or added up, where nothing else of their size takes part."""
        forms = [self._form(one) for one in args]
        known = [form for form in forms if form is not None]
        if not known:
            return
        sources = frozenset().union(*(form.sources for form in known))
        if result.shape != known[0].tensor.shape:
            if func in PRODUCTS_BY_ENTRY:
                self._awaited -= sources
            return
        large = [isinstance(one, Tensor) and one.shape == result.shape for one in args]
        if all(form is not None or not is_large for form, is_large in zip(forms, large, strict=True)):
            self._forms.append(_Form(result, sources, known[0].turned))

    def product(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Product | None:
        """The operation as a product of attention; None where it is none."""
        if not self._forms or not (func in PRODUCT or func is torch.einsum):
            return None
        operands = [*args, *kwargs.values()]
        if func is torch.einsum and len(operands) == 2 and isinstance(operands[1], (list, tuple)):
            operands = [operands[0], *operands[1]]
        forms = [form for one in operands if (form := self._form(one)) is not None]
        if not forms:
            return None
        found = self._einsum(operands) if func is torch.einsum else self._matmul(func, operands)
        if found is None:
            self._astray = True
            return None
        done = forms[0].sources
        self._awaited -= done
        self._forms = [form for form in self._forms if not form.sources <= done]
        return found

    def _matmul(self, func: Any, operands: Sequence[Any]) -> Product | None:
        if len(operands) != 2:
            return None
        left, right = (self._form(one) for one in operands)
        if left is not None and not left.turned:
            same = list(range(left.tensor.ndim))
            return self._product(left.tensor, operands[1], same, same, same, func)
        if right is not None and right.turned:  # (…, Dv, M) (…, M, N)
            rank = right.tensor.ndim
            turned = [*range(rank - 2), rank - 1, rank - 2]
            return self._product(
                right.tensor, operands[0], turned, turned, turned, lambda weights, values: func(values, weights)
            )
        return None

    def _einsum(self, operands: Sequence[Any]) -> Product | None:
        equation, *factors = operands
        forms = [self._form(one) for one in factors]
        places = [place for place, form in enumerate(forms) if form is not None]
        if not isinstance(equation, str):
            return None
        inputs, arrow, output = equation.replace(" ", "").partition("->")
        names = inputs.split(",")
        if len(places) != 1 or not arrow or len(names) != 2:
            return None
        place = places[0]
        form = forms[place]
        weights, values = names[place], names[1 - place]
        if form is None or len(weights) != form.tensor.ndim:
            return None
        *heads, queries, keys = weights if not form.turned else (*weights[:-2], weights[-1], weights[-2])
        width = set(values) - set(weights)
        wanted_values, wanted_output = [*heads, keys, *width], [*heads, queries, *width]
        if sorted(values) != sorted(wanted_values) or sorted(output) != sorted(wanted_output):
            return None

        def compute(weights: Tensor, values: Tensor) -> Tensor:
            return torch.einsum(equation, *((weights, values) if place == 0 else (values, weights)))

        return self._product(
            form.tensor,
            factors[1 - place],
            [weights.index(name) for name in (*heads, queries, keys)],
            [values.index(name) for name in wanted_values],
            [output.index(name) for name in wanted_output],
            compute,
        )

    def _product(
        self,
        weights: Tensor,
        values: Tensor,
        weights_order: list[int],
        values_order: list[int],
        order: list[int],
        compute: Callable[[Tensor, Tensor], Tensor],
    ) -> Product | None:
        """``*order``: which dimensions of the weights, the values and the product are (B, H, ...) or (B·H, ...)."""
        merged = weights.ndim == 3
        if weights.ndim not in RANKS or values.ndim != weights.ndim or (merged and len(weights) % self.images):
            return None
        back = [order.index(place) for place in range(len(order))]

        def parted(x: Tensor, order: list[int] = order) -> Tensor:
            x = x.permute(order) if order != sorted(order) else x
            return x.unflatten(0, (self.images, -1)) if merged else x

        def joined(x: Tensor) -> Tensor:
            x = x.flatten(0, 1) if merged else x
            return x.permute(back) if back != sorted(back) else x

        return Product(
            parted(weights, weights_order), parted(values, values_order), parted, joined, (weights, values), compute
        )


def _of_the_last_two(tensor: Tensor, dims: Sequence[Any]) -> bool:
    return {dim % tensor.ndim for dim in dims} == {tensor.ndim - 2, tensor.ndim - 1}
