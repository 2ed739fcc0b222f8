"""``vit-explain inspect``: what is found in a model, and which methods explain it."""

from __future__ import annotations

from typing import Annotated

import typer

from ..arguments import BUNDLED, open_explainer
from ..terminal import print_json, screen
from .explain import AsJson, Checkpoint, Device, Labels


def inspect(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="A name that `vit-explain models` lists.")] = BUNDLED,
    checkpoint: Checkpoint = None,
    labels: Labels = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Show what is found in a model: attention, grid, readout, preprocessing, and which methods apply."""
    from ..inspection import inspect as look_into

    found = look_into(open_explainer(model, checkpoint, labels, device))
    if as_json:
        print_json(found.document())
        return 0
    console = screen()
    grid = "×".join(map(str, found.grid))
    last = "" if found.last_grid == found.grid else f", {'×'.join(map(str, found.last_grid))} after the last block"
    named = "" if not found.labels else f" ({', '.join(found.labels[:3])}{', …' if found.classes > 3 else ''})"
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (found.mean, found.std))
    lines = [
        ("model", found.model),
        ("family", found.family),
        ("input", f"{found.input[0]}×{found.input[1]} pixels; {found.resize}; mean {mean}; std {std}"),
        ("classes", f"{found.classes}{named}"),
        ("tokens", f"{grid} patches{last}, {found.prefix} prefix tokens"),
        *(("attention" if number == 0 else "", line) for number, line in enumerate(found.attention)),
        ("readout", found.readout),
        ("patches can be left out as tokens", "yes" if found.undroppable is None else f"no: {found.undroppable}"),
        ("methods", ", ".join(found.methods)),
    ]
    for name, value in lines:
        console.print(f"{name}: {value}" if name else f"  {value}", highlight=False)
    if found.refused:
        console.print("not for this model:", highlight=False)
        reasons: dict[str, list[str]] = {}
        for name, reason in found.refused.items():
            # The same reason for many methods is said once, with the method's own name taken out of it.
            reasons.setdefault(reason.replace(name, "it"), []).append(name)
        for reason, names in reasons.items():
            console.print(f"  {', '.join(names)}: {reason}", highlight=False)
    return 0
