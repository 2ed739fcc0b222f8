"""The registry as people read it: facts in words, and the page that compares all methods (docs/methods.md)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .options import Option
from .perturb import FILLS
from .registry import NEEDS, Method, by_family

PATENTED = "relevance propagation"
PATENT_NOTE = (
    "The authors of LXT, a reference implementation of relevance propagation, state in their README that layer-wise "
    "relevance propagation (LRP) is a patented technology that may be used free of charge only for personal and "
    "scientific purposes. Whoever uses these methods commercially should check. This is not legal advice."
)


def passes(method: Method) -> str:
    """Forwards and backwards that one photo takes with the default options, as in ``52F 50B``; a dash if not known."""
    if not method.forwards + method.backwards:
        return "–"
    return f"{method.forwards}F" + (f" {method.backwards}B" if method.backwards else "")


def default_of(value: Any) -> str:
    """An option's default as it is written on the command line."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def option_lines(options: Mapping[str, Option]) -> list[tuple[str, str]]:
    """(heading, text) of each option."""
    return [("Option", f"{name} = {default_of(one.default)}: {one.allowed}") for name, one in options.items()]


def option_table(options: Mapping[str, Option]) -> Iterable[str]:
    """The options as a table in Markdown; nothing where there are none."""
    if options:
        rows = [f"| `{name}` | {default_of(one.default)} | {one.allowed} |" for name, one in options.items()]
        yield "\n".join(["| option | default | allowed |", "|---|---|---|", *rows])


def option_facts(options: Mapping[str, Option]) -> dict[str, Any]:
    """The options, ready for JSON."""
    return {name: {"default": one.default, "allowed": one.allowed} for name, one in options.items()}


def glossary(words: Mapping[str, str]) -> str:
    """What each word means, as a list in Markdown."""
    return "\n".join(f"- `{name}`: {text}" for name, text in words.items())


def paragraphs(function: Any) -> Iterable[str]:
    """What a docstring says after its first line, a line a paragraph."""
    _, *rest = (inspect.getdoc(function) or "").split("\n\n")
    return (" ".join(paragraph.split()) for paragraph in rest if paragraph.strip())


def details(method: Method) -> list[tuple[str, str]]:
    """(heading, text) of all that is to be said of a method beside its name and summary."""
    answers = "a class" if method.class_specific else "no class in particular"
    if method.hardly_class_specific:
        answers += f", but hardly tells classes apart: {method.hardly_class_specific}"
    poles = "for and against" if method.class_specific else "above and below zero"
    lines = [
        ("Family", method.family),
        ("Means", method.means),
        ("Does not mean", method.does_not_mean),
        ("Explains", answers + (f"; signed: {poles}" if method.signed else "")),
        ("Passes", f"{passes(method)} a photo"),
        *([("And besides", method.beyond_passes)] if method.beyond_passes else []),
        ("Needs", _needs(method)),
        ("Paper", method.paper),
        *option_lines(method.options),
    ]
    return [*lines, ("Patents", PATENT_NOTE)] if method.family == PATENTED else lines


def as_dict(method: Method) -> dict[str, Any]:
    """The facts, ready for JSON."""
    return {
        "name": method.name,
        "summary": method.summary,
        "family": method.family,
        "means": method.means,
        "does_not_mean": method.does_not_mean,
        "paper": method.paper,
        "forwards": method.forwards,
        "backwards": method.backwards,
        "beyond_passes": method.beyond_passes,
        "class_specific": method.class_specific,
        "hardly_class_specific": method.hardly_class_specific,
        "signed": method.signed,
        "needs": sorted(method.needs),
        "options": option_facts(method.options),
    }


def page(methods: Sequence[Method]) -> str:
    """All methods in Markdown: a table that compares them, then a section each."""
    families = by_family(methods)
    patented = ", ".join(f"`{method.name}`" for method in methods if method.family == PATENTED)
    parts = [
        "# Methods",
        "<!-- `make docs` writes this page from the registry: change the methods, not this file. -->",
        f"{len(methods)} methods, one signature: `explainer.explain(photo, method, target, **options)`, "
        "`vit-explain explain photo.jpg --method NAME`, or many at once with `vit-explain compare`.",
        "Class: whether the map depends on the class that is asked about; hardly, where the maps of four classes of "
        "a mosaic could not be told apart. Signed: whether, with the default options, numbers below zero mean the "
        "opposite of those above: against the class, where the map is about one. "
        "Passes: forwards (F) and backwards (B) a photo takes with the default options. Needs: what is kept of a look, "
        "with the default options; see [below](#what-methods-need).",
        "\n".join(_table(families)),
        f"Patents: {PATENT_NOTE} The methods concerned are {patented}.",
    ]
    for family, members in families:
        parts.append(f"## Family: {family}")
        for method in members:
            parts += _section(method)
    parts += ["## How patches are left out", "Values of `fill`:", glossary(FILLS)]
    parts += ["## What methods need", glossary(NEEDS)]
    return "\n\n".join(parts) + "\n"


def _table(families: Sequence[tuple[str, Sequence[Method]]]) -> Iterable[str]:
    yield "| family | method | class | signed | passes | needs |"
    yield "|---|---|---|---|---|---|"
    for family, members in families:
        for number, method in enumerate(members):
            facts = (
                family if number == 0 else "",
                f"[{method.name}](#{method.name})",
                method.about_class,
                "yes" if method.signed else "no",
                passes(method),
                _needs(method),
            )
            yield f"| {' | '.join(facts)} |"


def _section(method: Method) -> Iterable[str]:
    yield f"### {method.name}"
    yield method.summary
    yield f"**What it means.** {method.means}"
    yield f"**What it does not mean.** {method.does_not_mean}"
    if method.hardly_class_specific:
        yield f"**It hardly tells classes apart:** {method.hardly_class_specific}."
    yield from paragraphs(method.run)
    if method.beyond_passes:
        yield f"Takes longer than its passes: {method.beyond_passes}."
    yield from option_table(method.options)
    yield f"Paper: {method.paper}."


def _needs(method: Method) -> str:
    found = method.needed(method.settings({}))
    return ", ".join(name for name in NEEDS if name in found) or "nothing"
