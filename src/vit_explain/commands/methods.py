"""``vit-explain methods``: what can be asked, as the registry knows it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import OptionError
from ..terminal import print_json, screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


def methods(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Methods to describe; all in a table without one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/methods.md.")] = False,
) -> int:
    """List the methods by family; with names, what each means, its paper, its cost in passes, its options."""
    from ..catalogue import as_dict, details, page, passes
    from ..explainer import list_methods
    from ..registry import by_family, find

    if markdown and (names or as_json):
        raise OptionError("--markdown prints the page of all methods, and nothing goes with it")
    found = [find(name) for name in names] if names else list_methods()
    if markdown:
        print(page(found), end="")
        return 0
    if as_json:
        print_json([as_dict(method) for method in found])
        return 0
    console = screen()
    if names:
        for method in found:
            describe(console, method.name, method.summary, details(method))
        return 0
    width = max(len(method.name) for method in found)
    console.print(f"  {'':{width}}  class  signed  passes")
    for family, members in by_family(found):
        console.print(family)
        for method in members:
            about, signed = method.about_class.replace("no", "-"), "yes" if method.signed else "-"
            facts = f"{about:<7}{signed:<8}{passes(method):<10}"
            console.print(hanging(console, f"  {method.name:{width}}  {facts}{method.summary}", width + 29))
    console.print(
        "\nClass: whether the map is about the class asked for; hardly: where maps of classes are much alike."
    )
    console.print("Signed: numbers below zero mean the opposite of those above; against the class, if it is about one.")
    console.print("Passes: forwards and backwards a photo. `vit-explain methods NAME` says what a map means.")
    return 0


def describe(console: Console, name: str, summary: str, lines: Sequence[tuple[str, str]]) -> None:
    """A name and all that is to be said of it, (heading, text) a line."""
    console.print(f"{name}\n  {summary}")
    for heading, text in lines:
        console.print(hanging(console, f"  {heading:<15}{text}", 17))
    console.print()


def hanging(console: Console, line: str, indent: int) -> str:
    """The line, broken on a terminal so that what follows its first part stays in one column."""
    if not console.is_terminal or console.width < indent + 30:
        return line
    return textwrap.fill(line, console.width, subsequent_indent=" " * indent)
