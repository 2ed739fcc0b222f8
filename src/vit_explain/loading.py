"""Models by name."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import torch
from torch import nn

from . import methods, models  # noqa: F401  they register themselves
from .errors import ModelError, near, reason
from .family import FAMILIES, Family
from .huggingface import PREFIX as FOLDERS
from .registry import find
from .surroundings import own

DEFAULT_MODEL = "bundled"


@own()
def load_model(
    name: str = DEFAULT_MODEL, *, checkpoint: str | Path | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """The named model in eval mode on ``device``.

    ``"bundled"`` comes with the package; any other name takes its weights from the hub, or from ``checkpoint``
    (.safetensors, or a .pth that holds only tensors). A folder that transformers saved a model in is a name, too.
    Raises ``ModelError``.
    """
    if not isinstance(name, str):
        raise ModelError(f"models are loaded by name, not by {type(name).__name__}; one in memory is taken as it is")
    file = None if checkpoint is None else Path(checkpoint)
    if (Path(name) / "config.json").is_file():
        name = f"{FOLDERS}{name}"
    for family in FAMILIES:
        known = family.names()
        # What ends with a star stands for all that begin so; the part after a dot says which weights.
        beginnings = tuple(one[:-1] for one in known if one.endswith("*"))
        if name in known or name.split(".")[0] in known or name.startswith(beginnings):
            # Whatever mode the caller is in: it would be that of the weights for good.
            with torch.inference_mode(False):
                return family.load(name, file).to(parse_device(device))
    raise ModelError(f"there is no model {name!r}; {near(name, list_models())}")


def list_models(pattern: str = "*", method: str | None = None) -> list[str]:
    """Names that ``load_model`` takes and that match a shell pattern, or contain it where it has no wildcard.

    ``method``: only of models that this method is defined for, as far as that can be said before they are built. The
    model in the package comes first, names with a library in front last.
    """
    return [name for name, _ in models_with_families(pattern, method)]


def models_with_families(pattern: str = "*", method: str | None = None) -> list[tuple[str, Family]]:
    """``list_models`` with the family of each name."""
    families = [family for family in FAMILIES if method is None or find(method).explains(family.attends)]
    if not any(mark in pattern for mark in "*?["):
        pattern = f"*{pattern}*"
    found = [(name, family) for family in families for name in fnmatch.filter(family.names(), pattern)]
    return sorted(found, key=lambda pair: (pair[0] != DEFAULT_MODEL, "/" in pair[0]))


def parse_device(device: str | torch.device) -> torch.device:
    """A device that exists; an error that says so otherwise."""
    try:
        parsed = torch.device(device)
        torch.zeros(1, device=parsed).cpu()  # "meta" has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"device {str(device)!r} cannot be used here ({reason(error)})") from error
    return parsed
