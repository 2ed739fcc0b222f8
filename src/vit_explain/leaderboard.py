"""What ``--method best`` stands for: the head of the leaderboard that comes with the package (docs/leaderboard.md)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from .errors import OptionError
from .registry import BEST, BEST_SLOW, LEADING, METHODS, Method
from .sharing import layout_refusal
from .types import Anatomy

FILE = Path(__file__).parent / "assets" / "leaderboard.json"


@cache
def leaderboard() -> dict[str, Any]:
    """``order``: methods, the one of the highest standing first; and on what they were judged."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def best(name: str, anatomy: Anatomy, *, classes: bool) -> Method:
    """The first method of the leaderboard of this cost that can explain such a model; ``classes``: whether there is a
    class, or another target, to explain."""
    for found in map(METHODS.get, leaderboard()["order"]):
        if found is None or (name == BEST and not found.fast) or (found.class_specific and not classes):
            continue
        if layout_refusal(found, found.needed(found.settings({})), anatomy) is None:
            return found
    raise OptionError(f"no method of the leaderboard {LEADING[name]} can explain this model")


def said(name: str, found: Method) -> str:
    """What was chosen, for people."""
    board = leaderboard()
    place = [one for one in board["order"] if name == BEST_SLOW or METHODS[one].fast].index(found.name) + 1
    return (
        f"{found.name}, number {place} of the methods {LEADING[name]} on {board['images']} photos "
        f"with the model {board['model']}"
    )
