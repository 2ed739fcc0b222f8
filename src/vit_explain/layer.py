"""One attention call: its tensors, where they lie on the tokens, and its matrix, derived a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .errors import CaptureError

# Attention is derived in blocks of about this many numbers. On a processor a block should stay in its last cache; on an
# accelerator it should be large enough that starting an operation costs nothing beside the operation.
BLOCK_ELEMENTS = {"cpu": 2**20}
ACCELERATOR_BLOCK_ELEMENTS = 2**26

ALL = slice(None)


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the queries and keys of one attention call lie on the tokens of the residual stream.

    Of E tokens that enter the block and F that leave it, an image's W windows have n queries and m keys each, so that
    the call is (B·W, H, n, m), the windows of one image after the other.
    """

    queries: Tensor  # (W, n), which leaving token each query is; F where it is padding
    keys: Tensor  # (W, m), which entering token, or which cell of ``pooled``, each key is; their number where padding
    entering: int  # E
    leaving: int  # F
    pooled: Tensor | None = None  # (E,), which cell each entering token is averaged into to become a key
    skip: Tensor | None = None  # (E,), which leaving token each entering one is averaged into; None: it stays itself
    windows_first: bool = False  # of calls (B, W, H, n, D) or (B, W·H, n, D); others may be (B, H, W, n, D)
    merged: Tensor | None = None  # of each token that left the block below, which entering one it was averaged into
    beside: bool = False  # whether the call has the same input as the one before it, and adds to the same tokens

    @property
    def windows(self) -> int:
        """W."""
        return self.queries.shape[0]

    def to(self, device: torch.device) -> Placement:
        """The same on the device where the tokens are."""
        known = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{name: one.to(device) for name, one in known.items() if isinstance(one, Tensor)})


@dataclass(eq=False)
class Layer:
    """One attention call: B images, H heads, N queries, M keys, D channels a head.

    The attention matrix ``A = softmax(q kᵀ · scale + bias)`` and its gradient ``∂y/∂A = (∂y/∂out) vᵀ`` are derived on
    demand, for a block of images and rows at a time, in float32 whatever the model's precision.
    """

    scale: float
    q: Tensor | None = None  # (B, H, N, D); None where the model itself computed the probabilities
    k: Tensor | None = None  # (B, H, M, D)
    v: Tensor | None = None  # (B, H, M, Dv); None where only attention was asked for
    bias: Tensor | None = None  # added to the scores; broadcasts to (B, H, N, M)
    causal: bool = False
    probabilities: Tensor | None = None  # (B, H, N, M), from code that calls softmax itself
    out: Tensor | None = None  # (B, H, N, Dv), part of the graph where gradients were asked for
    grad_out: Tensor | None = None  # ∂y/∂out, (B, H, N, Dv)
    name: str = "attention"
    place: Placement | None = None  # where windowed or pooled attention lies on the tokens; None: on all, in order
    memory: object = None  # what must live as long as the tensors above do
    dropped: int = 0  # queries after the N kept ones, where only the first ones were worth their memory

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, N, M)."""
        if self.probabilities is not None:
            b, h, n, m = self.probabilities.shape
            return b, h, n, m
        assert self.q is not None and self.k is not None
        b, h, n, _ = self.q.shape
        return b, h, n, self.k.shape[2]

    @property
    def device(self) -> torch.device:
        known = self.probabilities if self.q is None else self.q
        assert known is not None
        return known.device

    def first(self, queries: int) -> Layer:
        """The same call, as if it had its first queries alone."""
        n = self.shape[2]
        return replace(
            self,
            q=None if self.q is None else self.q[:, :, :queries],
            probabilities=None if self.probabilities is None else self.probabilities[:, :, :queries],
            dropped=self.dropped + n - queries,
        )

    def blocks(self, images: slice = ALL, rows: slice = ALL) -> Iterator[tuple[slice, slice]]:
        """(images, rows) slices that together cover the given ones, each of about ``BLOCK_ELEMENTS`` numbers."""
        b, h, n, m = self.shape
        left, right, _ = images.indices(b)
        first, last, _ = rows.indices(n)
        elements = block_elements(self.device)
        width = max(1, elements // (h * m * max(1, last - first)))
        height = max(1, elements // (h * m))
        for start in range(left, right, width):
            for top in range(first, last, height):
                yield slice(start, min(start + width, right)), slice(top, min(top + height, last))

    def scores(self, images: slice = ALL, rows: slice = ALL) -> Tensor:
        """``q kᵀ · scale + bias`` for these images and rows, before the softmax: (images, H, rows, M) float32."""
        if self.q is None or self.k is None:
            raise CaptureError(f"{self.name}: this model computes its softmax itself, so its scores are not known")
        scores = _products(self.q.detach()[images, :, rows], self.k.detach()[images], self.scale)
        if self.bias is not None:
            b, h, n, m = self.shape
            scores += self.bias.detach().expand(b, h, n + self.dropped, m)[images, :, rows]
        if self.causal:
            n, m = self.shape[2:]
            later = torch.ones(n, m, dtype=torch.bool, device=scores.device).triu(1)
            scores.masked_fill_(later[rows], -torch.inf)
        return scores

    def attention(self, images: slice = ALL, rows: slice = ALL) -> Tensor:
        """``A`` for these images and rows: (images, H, rows, M) float32, every row a distribution over the keys.

        Not to be written to: it may be what the model itself computed.
        """
        if self.probabilities is not None:
            return self.probabilities.detach()[images, :, rows].float()
        scores = self.scores(images, rows)
        # In place: half the memory, and a block stays in cache.
        probabilities = torch.softmax(scores, -1, out=scores)
        # A row with every key masked is 0/0; fused attention answers zero there, and so do we.
        masked = self.bias is not None or self.causal
        return probabilities.nan_to_num_(0.0) if masked else probabilities

    def attention_gradient(self, images: slice = ALL, rows: slice = ALL) -> Tensor:
        """``∂y/∂A`` for these images and rows: (images, H, rows, M) float32, from ``out = A v``."""
        if self.grad_out is None or self.v is None:
            raise CaptureError(f"{self.name}: the gradient of this layer was not recorded")
        return _products(self.grad_out[images, :, rows], self.v.detach()[images], 1.0)


def block_elements(device: torch.device) -> int:
    """How many numbers a block of derived attention holds on this kind of device."""
    return BLOCK_ELEMENTS.get(device.type, ACCELERATOR_BLOCK_ELEMENTS)


def _products(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """``scale · left rightᵀ`` over the last two dimensions, (b, H, N, D) and (b, H, M, D) -> (b, H, N, M) float32."""
    b, h, n, _ = left.shape
    left, right = left.float(), right.float()
    # One image's q is a view into a larger buffer that batched products take as it is; several images' would be copied.
    left, right = (left[0], right[0]) if b == 1 else (left.flatten(0, 1), right.flatten(0, 1))
    out = left.new_empty(b * h, n, right.shape[1])
    # In place, which a caller's autocast leaves alone.
    return out.baddbmm_(left, right.transpose(1, 2), beta=0, alpha=scale).view(b, h, n, right.shape[1])
