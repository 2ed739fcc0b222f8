"""``torch.nn.MultiheadAttention`` opened: its operations one by one, as modes see those of any other code.

``F.multi_head_attention_forward`` hands itself to a ``TorchFunctionMode`` in one piece, and what happens inside is
hidden from that mode. A copy of the function that never asks for modes has its operations seen instead. While a mode is
entered, PyTorch takes none of its fast paths for attention, which would be one piece as well. Below it, what the fused
operation understands by its arguments, for modes that look inside.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

WHOLE: Any = F.multi_head_attention_forward
ASKS = "has_torch_function"  # the name by which it asks whether to hand itself over


def _opened(function: Any) -> Any:
    """A copy that is never handed over; nothing of the original is changed."""
    names = {**function.__globals__, ASKS: lambda _: False}
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)


OPENED = _opened(WHOLE)


def multi_head_attention(
    mode: TorchFunctionMode,
    *args: Any,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What ``F.multi_head_attention_forward`` returns, its operations seen by ``mode`` and the modes below it.

    To be called by the mode's handler with what it was given. The attention in it is always the fused operation;
    weights that the caller wants to have are computed once more, unseen.
    """
    with mode:
        out, _ = OPENED(*args, need_weights=False, **kwargs)
    if not need_weights:
        return out, None
    with torch._C.DisableTorchFunction():
        weights = WHOLE(*args, need_weights=True, average_attn_weights=average_attn_weights, **kwargs)[1]
    return out, weights


def for_each_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of groups of heads (B, groups, M, ·), repeated for each head that the queries have."""
    each = query.shape[1] // key.shape[1]
    return key.repeat_interleave(each, 1), value.repeat_interleave(each, 1)


def added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as what is added to the scores: of booleans, which say what is attended to, minus infinity elsewhere."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
