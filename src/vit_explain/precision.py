"""A caller's mixed precision is for the model: what methods make of what they saw of it stays as they wrote it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def mixed(device: torch.device) -> torch.dtype | None:
    """The precision of the ``torch.autocast`` that the caller is in; None outside of any."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Products in the precision of their operands."""
    return nullcontext() if mixed(device) is None else torch.autocast(device.type, enabled=False)


def with_autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Again what ``mixed`` found; None changes nothing."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
