"""``vit-explain methods``: what can be asked, as the registry knows it."""

from __future__ import annotations

from typing import Annotated

import typer

from ..terminal import print_json, screen


def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> int:
    """List the methods: what each shows, its paper, its cost in passes, its options."""
    from ..explainer import list_methods

    found = list_methods()
    if as_json:
        print_json(
            [
                {
                    "name": method.name,
                    "summary": method.summary,
                    "paper": method.paper,
                    "forwards": method.forwards,
                    "backwards": method.backwards,
                    "beyond_passes": method.beyond_passes,
                    "class_specific": method.class_specific,
                    "signed": method.signed,
                    "needs": sorted(method.needs),
                    "options": {
                        name: {"default": option.default, "allowed": option.allowed}
                        for name, option in method.options.items()
                    },
                }
                for method in found
            ]
        )
        return 0
    console = screen()
    for method in found:
        passes = f"{method.forwards} forward" + (f" and {method.backwards} backward" if method.backwards else "")
        facts = ["for a class" if method.class_specific else "for no class in particular"]
        if method.signed:
            facts.append("signed: for and against")
        console.print(f"{method.name}\n  {method.summary}")
        console.print(f"  {'; '.join(facts)}; {passes} a photo")
        if method.beyond_passes:
            console.print(f"  takes longer than its passes: {method.beyond_passes}")
        console.print(f"  {method.paper}")
        for name, option in method.options.items():
            console.print(f"    {name} = {option.default}: {option.allowed}")
        console.print()
    return 0
