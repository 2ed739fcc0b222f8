"""``vit-explain models``: names that ``--model`` takes, and with which methods."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import ModelError, near
from ..terminal import print_json, screen
from .explain import AsJson

METHODS = {
    "everywhere": "every method",
    "in places": "rollout, gradient_rollout, gae, attention, and methods that read no attention",
    "unread": "methods that read no attention",
}


def models(
    pattern: Annotated[str, typer.Argument(metavar="[PATTERN]", help="Part of a name, or with * and ?.")] = "*",
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only models that this method is defined for.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """List the models that can be loaded by name, by family, with the methods that explain most of the family."""
    from ..loading import list_models, models_with_families

    found = models_with_families(pattern, method)
    if not found:
        known = list_models(method=method)
        also = "" if method is None else f" that {method} is defined for"
        raise ModelError(f"no model is called {pattern!r}{also}; {near(pattern.strip('*'), known)}")
    if as_json:
        print_json([{"name": name, "family": one.title, "methods": METHODS[one.attends]} for name, one in found])
        return 0
    console = screen()
    title = ""
    for name, family in found:
        if family.title != title:
            console.print(("\n" if title else "") + f"# {family.title}: {METHODS[family.attends]}")
            title = family.title
        console.print(name)
    return 0
