"""Functions around a module's forward, for this thread and this ``with`` block only.

``register_forward_hook`` changes a dictionary that another thread may be walking through, and its hooks run for every
thread. Here the dictionary is replaced by a copy, which no walk notices, and a hook runs for the thread that set it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Before = Callable[[Any], Any]  # the first positional argument -> what takes its place
After = Callable[[Any], Any]  # the output -> what takes its place

_LOCK = threading.Lock()


@contextmanager
def hooked(module: nn.Module, *, before: Before | None = None, after: After | None = None) -> Iterator[None]:
    """Pass a module's first argument through ``before``, its output, or the first of several, through ``after``."""
    thread = threading.get_ident()

    def pre_hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if before is None or threading.get_ident() != thread:
            return None
        return (before(args[0]), *args[1:])

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if after is None or threading.get_ident() != thread:
            return None
        return (after(output[0]), *output[1:]) if type(output) is tuple else after(output)

    key = object()
    _replace(module, "_forward_pre_hooks", lambda hooks: hooks.__setitem__(key, pre_hook))
    _replace(module, "_forward_hooks", lambda hooks: hooks.__setitem__(key, hook))
    try:
        yield
    finally:
        _replace(module, "_forward_pre_hooks", lambda hooks: hooks.__delitem__(key))
        _replace(module, "_forward_hooks", lambda hooks: hooks.__delitem__(key))


def _replace(module: nn.Module, name: str, change: Callable[[OrderedDict[Any, Any]], None]) -> None:
    with _LOCK:
        hooks = OrderedDict(module.__dict__[name])
        change(hooks)
        module.__dict__[name] = hooks
