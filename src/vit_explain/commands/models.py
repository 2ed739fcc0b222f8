"""``vit-explain models``: names that ``--model`` takes."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import ModelError, near
from ..terminal import screen


def models(
    pattern: Annotated[str, typer.Argument(metavar="[PATTERN]", help="Part of a name, or with * and ?.")] = "*",
) -> int:
    """List the models that can be loaded by name."""
    from ..loading import list_models

    found = list_models(pattern)
    if not found:
        raise ModelError(f"no model is called {pattern!r}; {near(pattern.strip('*'), list_models())}")
    console = screen()
    for name in found:
        console.print(name)
    return 0
