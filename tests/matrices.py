"""Attention of placed calls as explicit matrices over all tokens, built entry by entry, and products of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_explain import Explainer
from vit_explain.inquiry import Subject
from vit_explain.layer import Layer
from vit_explain.targets import Target
from vit_explain.types import Trace

# The full mean attention of a block and its residual, each (leaving, entering), and the merge below it or None.
Full = tuple[Tensor, Tensor, Tensor | None]


def eye_images(grid: tuple[int, int]) -> Tensor:
    """Every patch as an image that is one there: (N, 1, h, w)."""
    return torch.eye(grid[0] * grid[1]).view(-1, 1, *grid)


def averaging(grid: tuple[int, int], step: int) -> Tensor:
    """(coarse, fine): means over squares, by average pooling."""
    return F.avg_pool2d(eye_images(grid), step).flatten(1).T


def scattered(attention: Tensor, queries: Tensor, keys: Tensor, leaving: int, entering: int) -> Tensor:
    """(W, H, n, m) of one image and the token numbers of each window -> (leaving, entering), entry by entry."""
    full = torch.zeros(leaving, entering)
    for window, heads in enumerate(attention):
        mean = heads.mean(0)
        for i, query in enumerate(queries[window].tolist()):
            for j, key in enumerate(keys[window].tolist()):
                full[query, key] += mean[i, j]
    return full


def captured(model: nn.Module, pixels: Tensor) -> list[Layer]:
    """The calls of one image, through the package; that attention is right is proven in ``test_capture``."""
    family = Explainer(model).family
    anatomy = family.anatomy(model, tuple(pixels.shape[1:]))  # type: ignore[arg-type]
    with torch.no_grad():
        trace, _ = Subject(model, family, anatomy).look(pixels, frozenset({"attention"}))
    return trace.layers


def with_gradients(model: nn.Module, pixels: Tensor, target: int) -> Trace:
    family = Explainer(model).family
    anatomy: Any = family.anatomy(model, tuple(pixels.shape[1:]))  # type: ignore[arg-type]
    subject = Subject(model, family, anatomy)
    needs = frozenset({"attention", "gradient"})
    trace, output = subject.look(pixels, needs)
    return subject.about(trace, output, [Target("", target)], needs, keep_graph=False)


def positive(layer: Layer) -> Layer:
    """A call whose attention is ``max(A ⊙ ∂y/∂A, 0)``."""
    values = (layer.attention() * layer.attention_gradient()).clamp(min=0)
    return dataclasses.replace(layer, q=None, k=None, bias=None, probabilities=values)


def rolled_out(parts: Sequence[Full], row: np.ndarray) -> np.ndarray:
    """The row times each block's matrix and residual, rows made to sum to one, from the last to the first."""
    for attention, residual, merge in reversed(parts):
        matrix = (attention + residual).numpy().astype(np.float64)
        row = row @ (matrix / matrix.sum(1, keepdims=True))
        row = row if merge is None else row @ merge.numpy()
    return row


def accumulated(parts: Sequence[Full], kept: np.ndarray) -> np.ndarray:
    """What the blocks' matrices add to the row; the row itself left out."""
    gained = np.zeros_like(kept)
    for attention, residual, merge in reversed(parts):
        gained = gained @ residual.numpy() + (kept + gained) @ attention.numpy().astype(np.float64)
        kept = kept @ residual.numpy()
        if merge is not None:
            gained, kept = gained @ merge.numpy(), kept @ merge.numpy()
    return gained
