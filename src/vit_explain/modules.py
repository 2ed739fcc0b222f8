"""A model's modules: all of them, and all of them in evaluation mode."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_TRAINING_LOCK = threading.RLock()


def modules_of(model: nn.Module) -> list[nn.Module]:
    """What ``model.modules()`` goes through, in a third of the time: every look needs it, and small models take
    little longer than that themselves."""
    found: dict[nn.Module, None] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting += [part for part in module._modules.values() if part is not None]
    return list(found)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode; the flag of each is put back afterwards, also when something raises."""
    if not any(module.training for module in modules_of(model)):
        yield
        return
    with _TRAINING_LOCK:
        training = [module for module in modules_of(model) if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True
