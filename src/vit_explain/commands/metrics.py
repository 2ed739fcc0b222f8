"""``vit-explain metrics``: what maps can be scored by, as the registry knows it."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import OptionError
from ..terminal import print_json, screen
from .methods import describe, hanging


def metrics(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Metrics to describe; all in a table without one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/metrics.md.")] = False,
) -> int:
    """List the metrics of `vit-explain evaluate`; with names, what each means, its paper and its options."""
    from .. import metrics as _registers_them  # noqa: F401
    from ..metric_catalogue import as_dict, cost, details, page
    from ..metric_registry import choose_metrics

    if markdown and (names or as_json):
        raise OptionError("--markdown prints the page of all metrics, and nothing goes with it")
    found = choose_metrics(names or ["all"])
    if markdown:
        print(page(found), end="")
        return 0
    if as_json:
        print_json([as_dict(metric) for metric in found])
        return 0
    console = screen()
    width = max(len(metric.name) for metric in found)
    family = ""
    for metric in found:
        if names:
            describe(console, metric.name, metric.summary, details(metric))
            continue
        if metric.family != family:
            family = metric.family
            console.print(family)
        facts = f"{metric.direction:<8}{cost(metric):<20}"
        console.print(hanging(console, f"  {metric.name:{width}}  {facts}{metric.summary}", width + 32))
    if not names:
        console.print("\nHigher or lower is better. Cost: forwards, or further maps, of an image.")
    return 0
