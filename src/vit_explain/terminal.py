"""How the commands speak: results on standard output, trouble as one line on standard error."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def complain(text: str) -> None:
    """One line on standard error."""
    print("vit-explain:", " ".join(text.split()), file=sys.stderr)


def screen(*, error: bool = False) -> Console:
    """A console that never breaks lines where no terminal asks for it, so that paths can be copied and searched."""
    from rich.console import Console

    return Console(stderr=error, highlight=False, markup=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """One JSON document on standard output, and a line end."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
