"""The nouns: one attention call, how the head reads, what a model family says, and what a whole look recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from .errors import CaptureError

# Attention is derived in blocks of about this many numbers. On a processor a block should stay in its last cache; on an
# accelerator it should be large enough that starting an operation costs nothing beside the operation.
BLOCK_ELEMENTS = {"cpu": 2**20}
ACCELERATOR_BLOCK_ELEMENTS = 2**26

ALL = slice(None)

# Where a model's attention goes: from every token to every token in every block; within windows, to means of tokens and
# the like, whose places are known; or it mixes no tokens, or it is not known where it lies, so that no method reads it.
Attends = Literal["everywhere", "in places", "unread"]


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


@dataclass(frozen=True, eq=False)
class Plan:
    """The attention calls of a model whose attention is not from every token to every token at all depths."""

    grid: tuple[int, int]  # of the tokens that enter the first placed call, or that its ``merged`` averages
    covers: tuple[int, int]  # as in ``Anatomy``, of this grid
    prefix: int  # tokens before them, there and throughout
    places: tuple[Placement | None, ...]  # one a call, in order; None for a call that mixes no tokens farther apart
    # than a convolution does
    reason: str  # what about the model's attention is different, as the first half of a sentence
    spread: Tensor | None = None  # (tokens, cells), the share of each token that belongs to each cell of the grid; None
    # where the tokens after the prefix are the cells

    @property
    def leaving(self) -> int:
        """Tokens that leave the last block, which the head reads."""
        placed = [place for place in self.places if place is not None]
        return placed[-1].leaving


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


@dataclass(frozen=True)
class Readout:
    """How the head reads the last block's tokens.

    The mean of the listed prefix ``tokens`` and, with ``patches``, of all patch tokens; or, with ``attention``, one
    more attention call whose queries are learned, the last one captured. ``queries``: of these how many, the first
    ones, where it does not read all. ``beside``: the head reads the mean of the tokens and the mean of the patches side
    by side, so that each of the two counts for one half.
    """

    tokens: tuple[int, ...] = ()
    patches: bool = False
    attention: bool = False
    queries: int | None = None
    beside: bool = False

    @property
    def needs_patches(self) -> bool:
        """Whether the head has no answer where no patch is left."""
        return self.beside or not self.tokens


@dataclass(frozen=True)
class Anatomy:
    """What a model family says of a model at one input size; checked against what is captured."""

    blocks: tuple[str, ...]  # names of the modules that tokens go through, first to last
    grid: tuple[int, int]
    covers: tuple[int, int]  # pixels (height, width) of the input that the grid stands for, from its upper left corner
    prefix: int
    readout: Readout
    features: str  # name of the module whose output CAMs read: the tokens as the last attention gets them; "" for none
    undroppable: str | None = None  # why patches cannot be left out as tokens; None where they can
    attended: tuple[str, ...] = ()  # modules of which the first output is what attention adds, one a block; or unknown
    plan: Plan | None = None  # where the blocks above are not what happens; ``grid`` and ``prefix`` are of ``features``
    unread: int = 0  # attention calls after those of the blocks that the head does not read
    remembers: bool = False  # whether its code keeps tensors for later calls, which inference mode would spoil


class Inquiry(Protocol):
    """One model and one number y an image, which can be looked at again. Rows belong to images in image-major order:
    of B·n rows, the first n belong to the first image."""

    @property
    def room(self) -> int:
        """Rows of one image that a forward should take, so that batches stay as large as others."""
        ...

    @property
    def black(self) -> tuple[float, ...]:
        """What a black pixel is in the model's input, one number a channel; empty where that is not known."""
        ...

    def rows(self, kept: int | None = None) -> int:
        """Rows that a forward of ``probe`` takes, where only so many patches are kept as tokens."""
        ...

    def single(self, image: int) -> Inquiry:
        """The same about one of the images alone."""
        ...

    def progress(self, done: int, total: int) -> None:
        """Say how many of a method's forwards are done, to whoever wants to know."""
        ...

    def again(self, pixels: Tensor, needs: Iterable[str], within: AbstractContextManager[Any] | None = None) -> Trace:
        """A look at other pixels, (B·n, C, H, W), for the same y; ``needs`` as methods state them."""
        ...

    def probe(self, pixels: Tensor, keep: Tensor | None = None, *, probability: bool = True) -> Tensor:
        """y (B·n,) of other pixels, without gradients; with ``keep`` (B·n, patches) the other patches are no tokens.

        One picture may be given for all rows of ``keep``; it is then made into tokens once a forward.
        ``probability``: of a class, its softmax probability instead of its logit; functions give what they give.
        """
        ...

    def lens(self, tokens: Tensor) -> Any:
        """The model's output if (B·n, N, D) were what left its last block."""
        ...

    def value(self, output: Any, *, probability: bool = False) -> Tensor:
        """y (B·n,) of an output; ``probability`` as in ``probe``."""
        ...

    def projection(self, block: int) -> Tensor:
        """``W_O`` (D, H·Dv) of a block's attention, with what scales it on its way into the residual stream."""
        ...


@dataclass(eq=False)
class Attribution:
    """A map with numbers about it, one an image, and with what a reader of an image's map must know."""

    map: Tensor  # (B, h, w)
    facts: dict[str, Tensor] = field(default_factory=dict)  # (B,) each
    warnings: list[list[str]] = field(default_factory=list)  # an image's own; empty for none at all


@dataclass(eq=False)
class Trace:
    """What happened when a model looked at B images, and how one number y an image came out of it.

    What the method did not ask for is absent: see ``registry.NEEDS``.
    """

    layers: list[Layer]  # self-attention of the blocks, first to last
    pool: Layer | None  # the pooling attention, where the head reads through one
    anatomy: Anatomy
    pixels: Tensor  # (B, C, H, W), as the model got them
    logits: Tensor  # (B, classes), detached
    inquiry: Inquiry  # the model, to be looked at again
    tokens: list[Tensor] = field(default_factory=list)  # (B, N, D) entering each block, and leaving the last: L + 1
    norms: Tensor | None = None  # (B, N), 2-norms of the tokens that left the last block
    token_gradients: list[Tensor] = field(default_factory=list)  # ∂y/∂tokens, as many
    attended: list[Tensor] = field(default_factory=list)  # (B, N, D) what attention adds to tokens in each block: L
    features: Tensor | None = None  # (B, N, D), see Anatomy.features
    feature_gradient: Tensor | None = None  # ∂y/∂features
    pixel_gradient: Tensor | None = None  # ∂y/∂pixels, (B, C, H, W)
    biases: Tensor | None = None  # (B, N), Σ b ⊙ ∂y/∂(what b is added to) from the first block on, see ``biases``
    y: Tensor | None = None  # (B,) what is explained, detached; None for methods without a target

    @property
    def length(self) -> int:
        """Tokens that leave the last block, prefix tokens included."""
        plan = self.anatomy.plan
        return self.anatomy.prefix + self.anatomy.grid[0] * self.anatomy.grid[1] if plan is None else plan.leaving

    def read_row(self) -> Tensor:
        """Weights (B, N), summing to one, that the head gives the last block's tokens; without a pooling attention."""
        readout, prefix = self.anatomy.readout, self.anatomy.prefix
        row = torch.zeros(len(self.pixels), self.length, dtype=torch.float32, device=self.logits.device)
        row[:, list(readout.tokens)] = 1
        if readout.patches:
            # A half of the row is the tokens', whatever the number of patches.
            row[:, prefix:] = len(readout.tokens) / (self.length - prefix) if readout.beside else 1
        return row / row.sum(1, keepdim=True)

    @property
    def read_tokens(self) -> slice:
        """From the first to the last of the tokens that the head reads, itself or through a pooling attention; known
        without a look at ``read_row``, for which an accelerator would be waited for."""
        if self.pool is not None:
            return slice(self.length - self.pool.shape[3], self.length)
        readout, prefix = self.anatomy.readout, self.anatomy.prefix
        first = min((*readout.tokens, prefix) if readout.patches else readout.tokens)
        return slice(first, self.length if readout.patches else max(readout.tokens) + 1)

    def impact(self, block: int) -> Tensor:
        """``Σ_d Z[i, d] ∂y/∂Z[i, d]`` (B, N) float32 of the tokens Z that enter a block."""
        tokens, gradient = self.tokens[block], self.token_gradients[block]
        if tokens.dtype == torch.float16:  # in which small products are none
            tokens, gradient = tokens.float(), gradient.float()
        return (tokens * gradient).sum(-1, dtype=torch.promote_types(tokens.dtype, torch.float32)).float()

    def pooled(self, row: Tensor) -> Tensor:
        """(B, keys of the pooling attention) -> (B, N): a pool may read the patch tokens alone."""
        return torch.nn.functional.pad(row, (self.length - row.shape[1], 0))

    def patches(self, row: Tensor) -> Tensor:
        """(B, N) weights on the tokens that enter the first block -> (B, h, w) on their grid.

        Prefix tokens are dropped here and nowhere else.
        """
        plan = self.anatomy.plan
        if plan is not None and plan.spread is not None:
            return (row @ plan.spread.to(row.device)).unflatten(1, plan.grid)
        whole = self.anatomy if plan is None else plan
        return row[:, whole.prefix :].unflatten(1, whole.grid)
