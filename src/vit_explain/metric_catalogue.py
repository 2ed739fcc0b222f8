"""The metrics as people read them: facts in words, and the page that compares all of them (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .catalogue import glossary, option_facts, option_lines, option_table, paragraphs
from .metric_registry import FAMILIES, NEEDS, Metric
from .removal import FILLINGS


def cost(metric: Metric) -> str:
    """What an image takes beside its map, with the default options."""
    parts = [f"{metric.forwards} forwards"] if metric.forwards else []
    parts += [f"{metric.maps} map{'s' if metric.maps > 1 else ''}"] if metric.maps else []
    return ", ".join(parts) or "-"


def details(metric: Metric) -> list[tuple[str, str]]:
    """(heading, text) of all that is to be said of a metric beside its name and summary."""
    return [
        ("Family", metric.family),
        ("Better", metric.direction),
        ("Means", metric.means),
        ("Does not mean", metric.does_not_mean),
        ("Takes", f"{cost(metric)}, beside the map itself"),
        *([("Needs", ", ".join(NEEDS[name] for name in sorted(metric.needs)))] if metric.needs else []),
        ("Paper", metric.paper),
        *option_lines(metric.options),
    ]


def as_dict(metric: Metric) -> dict[str, Any]:
    """The facts, ready for JSON."""
    return {
        "name": metric.name,
        "summary": metric.summary,
        "family": metric.family,
        "higher_is_better": metric.higher_is_better,
        "means": metric.means,
        "does_not_mean": metric.does_not_mean,
        "paper": metric.paper,
        "forwards": metric.forwards,
        "maps": metric.maps,
        "needs": sorted(metric.needs),
        "options": option_facts(metric.options),
    }


def page(metrics: Sequence[Metric]) -> str:
    """All metrics in Markdown: a table that compares them, then a section each."""
    parts = [
        "# Metrics",
        "<!-- `make docs` writes this page from the registry: change the metrics, not this file. -->",
        f"{len(metrics)} metrics by which `vit-explain evaluate` scores maps. Takes: what an image takes beside the "
        "map itself, with the default options; answers that several metrics ask for are asked for once. Parts of a "
        "picture are removed by leaving patches out as tokens where the model has an answer without them, so that it "
        "sees no picture of a kind that it does not know, and else painted over in the mean colour; `fill` "
        "([below](#how-parts-are-removed)) and `level` choose other ways, the papers' own among them. Patches that a "
        "map calls equal are taken in an order of chance.",
        "\n".join(_table(metrics)),
    ]
    for family in FAMILIES:
        parts.append(f"## Family: {family}")
        for metric in metrics:
            if metric.family == family:
                parts += _section(metric)
    parts += [
        "## How parts are removed",
        "Values of `fill`, of patches; of pixels, which are no tokens, `auto` is `mean`:",
        glossary(FILLINGS),
    ]
    return "\n\n".join(parts) + "\n"


def _table(metrics: Sequence[Metric]) -> Iterable[str]:
    yield "| family | metric | better | takes | needs |"
    yield "|---|---|---|---|---|"
    for metric in metrics:
        needs = ", ".join(sorted(metric.needs)) or "-"
        yield f"| {metric.family} | [{metric.name}](#{metric.name}) | {metric.direction} | {cost(metric)} | {needs} |"


def _section(metric: Metric) -> Iterable[str]:
    yield f"### {metric.name}"
    yield metric.summary
    yield f"**What it means.** {metric.means}"
    yield f"**What it does not mean.** {metric.does_not_mean}"
    yield from paragraphs(metric.run)
    yield from option_table(metric.options)
    yield f"Paper: {metric.paper}."
