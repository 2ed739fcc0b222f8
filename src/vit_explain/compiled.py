"""Compiled parts of a model, run as they were written while something looks into them.

What compiled code does inside is hidden from hooks and modes, or is that of an earlier call that none of them watched.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from .errors import ModelError

COMPILED = "_torchdynamo_orig_callable"  # what functions have that the compiler made

_LOCK = threading.Lock()
_STANCE = ExitStack()  # what was said before, which holds for all threads
_INSIDE = [0]  # threads that need code as it was written


def any_compiled(modules: Iterable[nn.Module]) -> bool:
    """Whether one of them was compiled: in place, as what ``torch.compile`` returns, or its ``forward``."""
    kinds = set()
    for module in modules:  # a model has hundreds, and every look asks: what can be said of their classes is, once
        kinds.add(type(module))
        own = module.__dict__
        if own.get("_compiled_call_impl") is not None or ("forward" in own and hasattr(own["forward"], COMPILED)):
            return True
    return any(hasattr(kind.forward, COMPILED) for kind in kinds)


@contextmanager
def as_written(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Without what the compiler made of any of these modules; ``ModelError`` where PyTorch cannot do without it."""
    if not any_compiled(modules):
        yield
        return
    if not hasattr(torch.compiler, "set_stance"):
        raise ModelError(
            "parts of the model are compiled, which hides what happens in them: explain it before they are, or install "
            "PyTorch 2.6 or later"
        )
    with _LOCK:
        if not _INSIDE[0]:
            _STANCE.enter_context(torch.compiler.set_stance("force_eager"))
        _INSIDE[0] += 1
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE[0] -= 1
            if not _INSIDE[0]:
                _STANCE.close()
