"""The nouns: how the head reads, what a model family says, and what a whole look recorded."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from .layer import Layer, Placement

# Where a model's attention goes: from every token to every token in every block; within windows, to means of tokens and
# the like, whose places are known; or it mixes no tokens, or it is not known where it lies, so that no method reads it.
Attends = Literal["everywhere", "in places", "unread"]


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
