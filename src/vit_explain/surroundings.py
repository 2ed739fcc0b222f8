"""What a caller has set for all of PyTorch is for the model: this package reckons as it would without.

That is ``torch.autocast``, under which products of float32 numbers would be rounded, and ``torch.set_default_device``,
which would put new tensors elsewhere than those they go with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

DEVICES = ("cpu", "cuda", "mps", "xpu")
PROCESSOR = torch.device("cpu")


@dataclass(frozen=True)
class _Settings:
    """What there is to be undone and put back; the precision of autocast by kind of device."""

    autocast: dict[str, torch.dtype]
    device: torch.device | None


_CALLERS: ContextVar[_Settings | None] = ContextVar("what the caller has set", default=None)


@contextmanager
def own() -> Iterator[None]:
    """Without what the caller has set; also a decorator. Within another one nothing is left to undo."""
    settings = _settings()
    if settings is None:
        yield
        return
    undone = [torch.autocast(kind, enabled=False) for kind in settings.autocast]
    with _entered([*undone, *([PROCESSOR] if settings.device else [])], settings):
        yield


@contextmanager
def callers() -> Iterator[None]:
    """With it again: for the model and for functions that the caller gave."""
    settings = _CALLERS.get()
    if settings is None:
        yield
        return
    again = [torch.autocast(kind, dtype) for kind, dtype in settings.autocast.items()]
    with _entered([*again, *([settings.device] if settings.device else [])], None):
        yield


@contextmanager
def _entered(contexts: Sequence[AbstractContextManager[Any]], undone: _Settings | None) -> Iterator[None]:
    """Inside all of these, where ``undone`` is what ``callers`` puts back."""
    token = _CALLERS.set(undone)
    try:
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            yield
    finally:
        _CALLERS.reset(token)


def _settings() -> _Settings | None:
    """What is set here and now; None for nothing."""
    kinds = [kind for kind in DEVICES if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)]
    autocast = {kind: torch.get_autocast_dtype(kind) for kind in kinds}
    device = torch.get_default_device()
    elsewhere = device.type != PROCESSOR.type
    return _Settings(autocast, device if elsewhere else None) if autocast or elsewhere else None
