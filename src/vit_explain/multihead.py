"""``torch.nn.MultiheadAttention`` opened: its operations one by one, as modes see those of any other code.

``F.multi_head_attention_forward`` hands itself to a ``TorchFunctionMode`` in one piece, and what happens inside is
hidden from that mode. A copy of the function that never asks for modes has its operations seen instead. While a mode is
entered, PyTorch takes none of its fast paths for attention, which would be one piece as well.
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
