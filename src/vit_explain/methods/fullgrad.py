"""FullGrad: input times gradient, and every bias times its gradient."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..multihead import WHOLE, multi_head_attention
from ..pixel_paths import Level, on_level
from ..registry import method
from ..types import Anatomy, Attribution, Trace

BIASED = {F.linear: 2, F.layer_norm: 3, F.conv2d: 2, F.group_norm: 3}  # which argument the bias is
CHANNELS_FIRST = {F.conv2d, F.group_norm}
ADD = {"add", "add_", "__add__", "__radd__", "__iadd__"}
CAT = {"cat", "concat"}
Combine = Literal["sum", "rescaled"]


@method(
    paper="Srinivas and Fleuret, Full-Gradient Representation for Neural Network Visualization, NeurIPS 2019",
    family="gradients",
    means="The shares of pixels and of biases in the score, for and against, those of a bias at the patch whose token "
    "it acts on.",
    does_not_mean="They add up to the score only in a model that is linear in pieces, which a ViT is not: its "
    "completeness_gap is often large. Shares of prefix tokens and of the head have no place and are not in the map.",
    needs={"probe", "blocks"},
    forwards=2,
    backwards=1,
    class_specific=True,
    signed=lambda *, combine, **_: combine == "sum",
)
def fullgrad(trace: Trace, *, combine: Combine = "sum", level: Level = "patches") -> Attribution:
    """Input times gradient plus every bias times its gradient: all that a piecewise linear model's score is made of.

    ``y = Σ x ⊙ ∂y/∂x + Σ_b b ⊙ ∂y/∂b`` for such a model. Biases are those of linear layers, convolutions, layer and
    group norms, and every constant that is added to or set beside the tokens: position embeddings, class and register
    tokens. A bias acts on every token, and its term there belongs to that token's patch; terms of prefix tokens and of
    the head, which have no place, are in the sum but not in the map.

    ``combine``: ``"sum"`` adds the signed terms, so that the map keeps the decomposition. ``"rescaled"`` is the
    saliency map of the paper's code: each layer's terms, and the input's, in absolute value, scaled to [0, 1] over
    patches and channels, then added up. ``level``: the sum (rescaled: the mean) of the input's terms over each patch
    (B, h, w), or ``"pixels"`` (B, H, W), where a patch's bias terms are spread over its pixels: evenly, instead of the
    paper's bilinear upsampling, which keeps their sum (rescaled: each pixel has its patch's value, as in the paper).

    Facts: ``completeness_gap``, ``|Σ terms − y| / |y|``. Zero for a piecewise linear model, also a ViT whose attention
    is constant. A real ViT is not one: what GELU (``Σ (f(u) − u f'(u)) ∂y/∂f``), the division in a norm and attention
    (a product of the values and of weights that themselves depend on the tokens) put in or take out is not a bias and
    not in the terms, so its gap is often above 1. Biases that are added to attention scores are left out too.
    """
    assert trace.y is not None
    tap = BiasTap(trace.anatomy, combine, len(trace.pixels))
    gradient = trace.inquiry.again(trace.pixels, {"pixels", "gradient"}, tap).pixel_gradient
    assert gradient is not None
    terms = trace.pixels.float() * gradient.float()
    gap = (terms.flatten(1).sum(1) + tap.total - trace.y).abs() / trace.y.abs().clamp_min(torch.finfo().tiny)
    if combine == "rescaled":
        terms = _rescaled(terms)
    how = "sum" if combine == "sum" else "mean"
    shown = on_level(trace, terms.sum(1), level, how)
    shown = shown + (_spread(trace, tap.map, how) if level == "pixels" else tap.map)
    return Attribution(shown, {"completeness_gap": gap})


class BiasTap(TorchFunctionMode):
    """Adds up bias times gradient while a gradient of y flows through what ran inside: per patch, and all in all.

    The gradient is read where it passes the biased operation's output, by a hook on that one tensor of the graph.
    ``biases.BiasTap`` counts fewer, of the blocks alone, and only their sum; absolute values, which ``"rescaled"``
    takes of every term, cannot be had from that.
    """

    def __init__(self, anatomy: Anatomy, combine: Combine, images: int) -> None:
        super().__init__()
        self.anatomy, self.combine, self.images = anatomy, combine, images
        self._inside = False  # of nn.MultiheadAttention, where tokens come before images
        self.map: Tensor = torch.zeros(())  # (B, h, w) after the backward
        self.total: Tensor = torch.zeros(())  # (B,)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is WHOLE:
            self._inside = True
            try:
                return multi_head_attention(self, *args, **kwargs)
            finally:
                self._inside = False
        name = getattr(func, "__name__", "")
        # What is added in place is no longer there afterwards.
        constants = self._constants(name, args, kwargs)
        result = func(*args, **kwargs)
        if func in BIASED:
            bias = kwargs.get("bias", args[BIASED[func]] if len(args) > BIASED[func] else None)
            if bias is not None:
                self._watch(result, bias[:, None, None] if func in CHANNELS_FIRST else bias, func in CHANNELS_FIRST)
        elif constants is not None:
            self._watch(result, constants, False)
        return result

    def _constants(self, name: str, args: Any, kwargs: Any) -> Tensor | None:
        """What of a sum of two tensors, or of tensors side by side, no pixel is behind; None for all or nothing."""
        parts = args[0] if name in CAT else args[:2] if name in ADD else ()
        if not parts or not all(isinstance(one, Tensor) for one in parts) or max(one.ndim for one in parts) != 3:
            return None
        fixed = [_constant(one) for one in parts]
        if all(fixed) or not any(fixed):
            return None
        if name in ADD:
            return parts[fixed.index(True)]
        kept = [one if known else torch.zeros_like(one) for one, known in zip(parts, fixed, strict=True)]
        return torch.cat(kept, *args[1:], **kwargs)

    def _watch(self, result: Tensor, bias: Tensor, channels_first: bool) -> None:
        if result.requires_grad:
            result.register_hook(partial(self._record, bias.detach(), channels_first, self._inside))

    def _record(self, bias: Tensor, channels_first: bool, inside: bool, gradient: Tensor) -> None:
        terms = gradient.detach().float() * bias.float()
        if inside:  # (N, B, C) or (N·B, C)
            terms = terms.reshape(-1, self.images, terms.shape[-1]).transpose(0, 1)
        self.total = self.total.to(terms.device) + terms.flatten(1).sum(1)
        placed = self._placed(terms, channels_first)
        if placed is not None:
            placed = _rescaled(placed) if self.combine == "rescaled" else placed
            self.map = self.map.to(terms.device) + placed.sum(2).unflatten(1, self.anatomy.grid)

    def _placed(self, terms: Tensor, channels_first: bool) -> Tensor | None:
        """(B, patches, channels) of terms in whatever shape; None where they have no place in the image."""
        grid, prefix = self.anatomy.grid, self.anatomy.prefix
        patches = grid[0] * grid[1]
        if channels_first:  # (B, C, h', w') of a convolution, maybe finer than the grid
            finer = terms.shape[2] * terms.shape[3] / patches
            return (F.adaptive_avg_pool2d(terms, grid) * finer).flatten(2).transpose(1, 2)
        if terms.ndim == 4 and terms.shape[1:3] == grid:  # (B, h, w, C)
            return terms.flatten(1, 2)
        if terms.ndim == 4:  # (B, heads, tokens, C)
            terms = terms.transpose(1, 2).flatten(2)
        if terms.ndim == 3 and terms.shape[1] == prefix + patches:
            return terms[:, prefix:]
        return terms if terms.ndim == 3 and terms.shape[1] == patches else None


def _constant(tensor: Tensor) -> bool:
    """Whether no pixel is behind it: it needs no gradient, or all that its graph begins with are parameters."""
    if not tensor.requires_grad:
        return True
    if tensor.grad_fn is None:
        return isinstance(tensor, nn.Parameter)
    nodes, seen = [tensor.grad_fn], set()
    while nodes:
        node = nodes.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None and not isinstance(leaf, nn.Parameter):
            return False
        fresh = [before for before, _ in node.next_functions if before is not None and before not in seen]
        seen.update(fresh)
        nodes += fresh
    return True


def _rescaled(terms: Tensor) -> Tensor:
    """Absolute values, scaled to [0, 1] over each image's places and channels."""
    low, high = (size.view(-1, *[1] * (terms.ndim - 1)) for size in terms.abs().flatten(1).aminmax(dim=1))
    return (terms.abs() - low) / (high - low).clamp_min(torch.finfo(terms.dtype).tiny)


def _spread(trace: Trace, patches: Tensor, how: str) -> Tensor:
    """(B, h, w) over the pixels of each patch, (B, H, W): in equal shares, or the same value for each."""
    (h, w), (height, width) = trace.anatomy.grid, trace.anatomy.covers
    p, q = height // h, width // w
    values = patches.repeat_interleave(p, 1).repeat_interleave(q, 2) / (p * q if how == "sum" else 1)
    return F.pad(values, (0, trace.pixels.shape[3] - width, 0, trace.pixels.shape[2] - height))
