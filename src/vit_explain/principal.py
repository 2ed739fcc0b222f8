"""The direction along which vectors differ most."""

from __future__ import annotations

import torch
from torch import Tensor

SQUARINGS = 14  # a power of 2¹⁴: what is a thousandth smaller than the largest is gone then


def leading_component(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates (B, n) of centred vectors (B, n, D) along their first principal component, of either sign, and its
    eigenvalue (B,), the sum of their squares."""
    few = vectors.shape[1] <= vectors.shape[2]  # the smaller of both matrices has the same eigenvalues
    products = vectors @ vectors.mT if few else vectors.mT @ vectors
    if products.device.type == "cpu":
        values, directions = torch.linalg.eigh(products)  # smallest first
        value, direction = values[:, -1].clamp_min(0), directions[..., -1]
    else:
        value, direction = by_squaring(products)
    along = direction * value.sqrt()[:, None] if few else (vectors @ direction[..., None]).squeeze(2)
    return along, value


def by_squaring(products: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue (B,) of symmetric matrices (B, n, n) without negative ones, and its eigenvector (B, n).

    Accelerators take long to find all eigenvectors, and are quick at products of matrices: those of a high power are
    all the one wanted.
    """
    tiny = torch.finfo(products.dtype).tiny
    power = products
    for _ in range(SQUARINGS):
        power = power / power.diagonal(dim1=1, dim2=2).sum(1).clamp_min(tiny)[:, None, None]
        power = power @ power
    longest = power.norm(dim=1).argmax(1)
    column = power.gather(2, longest[:, None, None].expand(-1, power.shape[1], 1))
    direction = products @ column  # once more, free of what squaring has rounded
    direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(tiny)
    return (direction.mT @ products @ direction)[:, 0, 0], direction[..., 0]
