"""Every model with attention of timm, transformers and torchvision, and what of it can be explained, as tables.

``python benchmarks/zoo.py [--parts timm,libraries] [--out docs/model-support.md]``. No weights are needed.

*Capture*: the attention calls that are seen must be those that the family says, in number and shape. *Numbers*, with
random weights: see ``zoo_checks``. The sections of parts that are not asked for stay in the file as they are.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import zoo_libraries
import zoo_timm

PARTS: dict[str, tuple[str, Callable[[argparse.Namespace], str]]] = {
    "timm": (zoo_timm.TITLE, zoo_timm.section),
    "libraries": (zoo_libraries.TITLE, zoo_libraries.section),
}
HEAD = "# Models\n\nWritten by `make zoo`, with random weights and without a network.\n"
HEADING = "\n## "


def merged(old: str, new: dict[str, str]) -> str:
    """The file with these sections, title -> text, in place of those it has; the others stay."""
    parts = [part.partition("\n") for part in old.split(HEADING)[1:]]
    sections = {title: text.strip("\n") for title, _, text in parts} | new
    known = [title for title, _ in PARTS.values() if title in sections]
    return HEAD + "".join(f"{HEADING}{title}\n\n{sections[title]}\n" for title in known)


def parts(names: str) -> list[str]:
    chosen = names.split(",")
    if unknown := set(chosen) - set(PARTS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=parts, default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--pattern", default="*", help="names of timm's, as timm.list_models takes them")
    parser.add_argument(
        "--largest", type=float, default=30, help="million parameters of a model whose numbers are checked"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/model-support.md"))
    parser.add_argument(
        "--log", type=Path, help="one JSON line a name of timm's as it is done; what is there is not done again"
    )
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    new = {PARTS[name][0]: PARTS[name][1](given) for name in given.parts}
    given.out.parent.mkdir(exist_ok=True)
    old = given.out.read_text(encoding="utf-8") if given.out.exists() else ""
    given.out.write_text(merged(old, new), encoding="utf-8")


if __name__ == "__main__":
    main()
