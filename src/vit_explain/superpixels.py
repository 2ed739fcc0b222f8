"""Superpixels on the patch grid: connected groups of patches of similar colour, which follow the picture's edges."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

# How far in colour, in standard deviations of the picture's own patches, counts as much as a superpixel's side in
# place. The paper's value is for pixels of photographs in Lab colours, which inputs of a model are not.
COMPACTNESS = 1.0


def superpixels(colours: Tensor, start: Tensor, compactness: float = COMPACTNESS) -> Tensor:
    """(h, w) numbers of the superpixel that each patch belongs to, from colours (h, w, C); as many as ``start`` has.

    Simple Non-Iterative Clustering (Achanta and Süsstrunk, CVPR 2017): each superpixel grows from the patch nearest
    to the middle of a group in ``start`` (h, w). Always the patch is added that is nearest to the superpixel it lies
    beside, ``‖c − c_k‖² / (compactness · σ)² + ‖x − x_k‖² / s`` from its mean colour and place, with s the patches a
    superpixel has on average. So all patches of a superpixel hang together, by their sides.
    """
    h, w = start.shape
    count = int(start.max()) + 1
    points = colours.double().cpu().flatten(0, 1)
    points = points - points.mean(0)
    deviation = points.square().sum(1).mean().sqrt().clamp_min(torch.finfo(points.dtype).tiny)
    places = torch.cartesian_prod(torch.arange(h).double(), torch.arange(w).double()) * (count / (h * w)) ** 0.5
    points = torch.cat([points / (compactness * deviation), places], 1)
    labels = [-1] * (h * w)
    sums, sizes = torch.zeros(count, points.shape[1], dtype=points.dtype), [0] * count
    queue = [(0.0, seed, number) for number, seed in enumerate(_seeds(start, places))]
    while queue:
        _, patch, number = heapq.heappop(queue)
        if labels[patch] >= 0:
            continue
        labels[patch] = number
        sums[number] += points[patch]
        sizes[number] += 1
        beside = [other for other in _beside(patch, h, w) if labels[other] < 0]
        if beside:
            apart = (points[beside] - sums[number] / sizes[number]).square().sum(1).tolist()
            for distance, other in zip(apart, beside, strict=True):
                heapq.heappush(queue, (distance, other, number))
    return torch.tensor(labels).view(h, w)


def _seeds(start: Tensor, places: Tensor) -> list[int]:
    """Of each group the patch nearest to its middle."""
    groups = start.flatten()
    found = []
    for number in range(int(groups.max()) + 1):
        members = (groups == number).nonzero()[:, 0]
        middle = places[members].mean(0)
        found.append(int(members[(places[members] - middle).square().sum(1).argmin()]))
    return found


def _beside(patch: int, h: int, w: int) -> list[int]:
    row, column = divmod(patch, w)
    steps = ((row - 1, column), (row, column - 1), (row, column + 1), (row + 1, column))
    return [r * w + c for r, c in steps if 0 <= r < h and 0 <= c < w]
