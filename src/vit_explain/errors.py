"""What can go wrong, in words for the person who called: a sentence or two that say what would work."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VitExplainError(Exception):
    """Base of every error this package raises on purpose. The command line prints its text as one line and exits 2."""


class ImageError(VitExplainError, ValueError):
    """An image that cannot be read, or pixels that are no picture."""


class ModelError(VitExplainError, ValueError):
    """A model that is unknown, unsupported, or whose weights cannot be loaded."""


class CaptureError(VitExplainError, RuntimeError):
    """What was seen while the model ran does not match what the model family says of it."""


class TargetError(VitExplainError, ValueError):
    """A class, label or target that the model does not have."""


class ContrastError(TargetError):
    """A contrast of a class with itself, as "top1" may be for one image and not for others."""


class OptionError(VitExplainError, ValueError):
    """A method, or an option of a method, that does not exist or is out of range."""


class OutputError(VitExplainError, OSError):
    """A result that could not be written."""


def reason(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def near(name: str, known: Iterable[str], most: int = 5) -> str:
    """Sentence that offers the known names closest to ``name``, or the first few where none is close."""
    names = list(dict.fromkeys(known))
    lowered = {n.lower(): n for n in names}
    close = [lowered[n] for n in difflib.get_close_matches(name.lower(), lowered, most, 0.5)]
    close += [n for n in names if name and name.lower() in n.lower() and n not in close]
    if close:
        return f"near matches: {', '.join(close[:most])}"
    shown = ", ".join(names[:most])
    return f"known: {shown}" + (f" and {len(names) - most} more" if len(names) > most else "")
