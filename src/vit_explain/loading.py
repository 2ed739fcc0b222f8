"""Models by name."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import torch
from torch import nn

from . import models  # noqa: F401  registers the families
from .errors import ModelError, near, reason
from .family import FAMILIES
from .huggingface import PREFIX as FOLDERS

DEFAULT_MODEL = "bundled"


def load_model(
    name: str = DEFAULT_MODEL, *, checkpoint: str | Path | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """The named model in eval mode on ``device``.

    ``"bundled"`` comes with the package; any other name takes its weights from the hub, or from ``checkpoint``
    (.safetensors, or a .pth that holds only tensors). A folder that transformers saved a model in is a name, too.
    Raises ``ModelError``.
    """
    file = None if checkpoint is None else Path(checkpoint)
    if (Path(name) / "config.json").is_file():
        name = f"{FOLDERS}{name}"
    for family in FAMILIES:
        known = family.names()
        # What ends with a star stands for all that begin so; the part after a dot says which weights.
        beginnings = tuple(one[:-1] for one in known if one.endswith("*"))
        if name in known or name.split(".")[0] in known or name.startswith(beginnings):
            return family.load(name, file).to(parse_device(device))
    raise ModelError(f"there is no model {name!r}; {near(name, list_models())}")


def list_models(pattern: str = "*") -> list[str]:
    """Names that ``load_model`` takes and that match a shell pattern, or contain it where it has no wildcard.

    The model in the package comes first, names with a library in front last.
    """
    names = [name for family in FAMILIES for name in family.names()]
    names.sort(key=lambda name: (name != DEFAULT_MODEL, "/" in name))
    if not any(mark in pattern for mark in "*?["):
        pattern = f"*{pattern}*"
    return fnmatch.filter(names, pattern)


def parse_device(device: str | torch.device) -> torch.device:
    """A device that exists; an error that says so otherwise."""
    try:
        parsed = torch.device(device)
        torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"device {str(device)!r} cannot be used here ({reason(error)})") from error
    return parsed
