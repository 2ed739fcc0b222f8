"""A model's modules: all of them, and all of them in evaluation mode."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_LOCK = threading.Lock()
# Modules that are in training mode otherwise, and how many threads keep them out of it.
_HELD: dict[nn.Module, int] = {}


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
def evaluation_mode(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Every module in eval mode; the flag of each is put back afterwards, also when something raises.

    Gives ``modules_of`` the model. Several threads may be inside: flags are put back when the last of them leaves.
    """
    modules = modules_of(model)
    with _LOCK:
        held = [module for module in modules if module.training or module in _HELD]
        for module in held:
            module.training = False
            _HELD[module] = _HELD.get(module, 0) + 1
    try:
        yield modules
    finally:
        with _LOCK:
            for module in held:
                _HELD[module] -= 1
            _train([module for module in held if not _HELD[module]])


def _train(modules: list[nn.Module]) -> None:
    """Put these modules, and no others, back into training mode."""
    for module in modules:
        del _HELD[module]
    # Some attentions keep biases in eval mode and forget them in ``train`` (timm's LeViT, TinyViT, EfficientFormer).
    own = [module for module in modules if type(module).train is not nn.Module.train]
    flags = {part: part.training for module in own for part in modules_of(module)}
    for module in own:
        module.train()
    for part, training in flags.items():
        part.training = training
    for module in modules:
        module.training = True
