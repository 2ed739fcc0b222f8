"""What biases say: ``Σ b ⊙ ∂y/∂out`` over all operations that add a bias b to what becomes out, token by token."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .multihead import WHOLE, multi_head_attention

ADD = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__)


class BiasTap(TorchFunctionMode):
    """After the backward, the gradient of ``share`` (B, N) is the biases' share in y at each token.

    Every bias counts as ``(1 + share) · b``, which is what it was, so one number a token gathers all of them and
    nothing is kept. Counted are biases added to (B, N, D) outputs, or to those of the patches alone, once ``armed``:
    linear layers', layer norms', and vectors that are added by themselves; and in ``nn.MultiheadAttention``, where
    tokens come before images.
    """

    def __init__(self, share: Tensor, patches: int) -> None:
        super().__init__()
        self.share, self.patches, self.armed = share, patches, False
        self._inside = False  # of nn.MultiheadAttention

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is WHOLE:
            self._inside = True
            try:
                return multi_head_attention(self, *args, **(kwargs or {}))
            finally:
                self._inside = False
        out = func(*args, **(kwargs or {}))
        if not self.armed:
            return out
        bias = _bias(func, *args, **(kwargs or {}))
        if bias is None or not out.requires_grad or out.shape[-1] != len(bias):
            return out
        share = self._share_of(tuple(out.shape[:-1]))
        return out if share is None else _Counted.apply(out, share, bias.detach())

    def _share_of(self, shape: tuple[int, ...]) -> Tensor | None:
        """The entries of ``share`` that belong to vectors of this shape; None where they are no tokens."""
        batch, length = self.share.shape
        for tokens in (length, self.patches):
            share = self.share[:, length - tokens :]
            if self._inside and shape == (tokens, batch):
                return share.T
            if self._inside and shape == (tokens * batch,):
                return share.T.flatten()
            if not self._inside and shape == (batch, tokens):
                return share
        return None


def _bias(func: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    """The vector that a call adds at the end."""
    if func is F.linear:
        bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
    elif func is F.layer_norm:
        bias = kwargs.get("bias", args[3] if len(args) > 3 else None)
    elif func in ADD and len(args) == 2:
        bias = args[1]
    else:
        return None
    return bias if isinstance(bias, Tensor) and bias.ndim == 1 else None


class _Counted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, share: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(bias)
        ctx.dtype = share.dtype
        return out.data  # the same memory, and no view that later in-place arithmetic could not touch

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,), (bias,) = gradients, ctx.saved_tensors
        return gradient, gradient.to(ctx.dtype) @ bias.to(ctx.dtype), None
