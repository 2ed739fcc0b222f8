"""What ``--method best`` stands for: the head of the leaderboard that comes with the package (docs/leaderboard.md)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from .errors import OptionError
from .registry import METHODS, Method
from .sharing import layout_refusal
from .types import Anatomy

FILE = Path(__file__).parent / "assets" / "leaderboard.json"


@cache
def leaderboard() -> dict[str, Any]:
    """``order``: methods of one forward and at most one backward, the one of the highest standing first; and on what
    they were judged."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def best(anatomy: Anatomy, *, classes: bool) -> Method:
    """The first method of the leaderboard that can explain such a model; ``classes``: whether there is a class, or
    another target, to explain."""
    for found in (METHODS[name] for name in leaderboard()["order"]):
        fits = classes or not found.class_specific
        if fits and layout_refusal(found, found.needed(found.settings({})), anatomy) is None:
            return found
    raise OptionError("no method of the leaderboard can explain this model; name one")


def said(found: Method) -> str:
    """What was chosen, for people."""
    board = leaderboard()
    place = board["order"].index(found.name) + 1
    return (
        f"{found.name}, number {place} of the leaderboard of methods of one forward and at most one backward "
        f"({board['images']} photos, model {board['model']})"
    )
