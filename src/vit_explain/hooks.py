"""Functions around a module's forward, for this thread and this ``with`` block only.

Hooks of ``register_forward_hook`` run for every thread; these run for the thread that set them alone. They go into the
module's own dictionaries, which users' handles refer to. A module unpacks its hooks before it calls the first, so that
no other thread's forward notices when they change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Before = Callable[[Any], Any]  # the first positional argument -> what takes its place
After = Callable[[Any], Any]  # the output -> what takes its place


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

    key = object()  # PyTorch's own keys are counted up, and two threads might get the same
    module._forward_pre_hooks[key] = pre_hook  # pyright: ignore[reportArgumentType]
    module._forward_hooks[key] = hook  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del module._forward_pre_hooks[key]  # pyright: ignore[reportArgumentType]
        del module._forward_hooks[key]  # pyright: ignore[reportArgumentType]
