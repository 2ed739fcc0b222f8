"""Classes by the names that people give them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence


class Names:
    """What a model's labels call its classes. Case, spaces, hyphens and underscores make no difference."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._whole: dict[str, list[int]] = defaultdict(list)
        self._parts: dict[str, list[int]] = defaultdict(list)
        for number, label in enumerate(labels):
            self._whole[_plain(label)].append(number)
            for part in {_plain(part) for part in label.split(",")}:
                self._parts[part].append(number)

    def find(self, name: str) -> list[int]:
        """The classes with this label; where there is none, those that have it among comma-separated synonyms."""
        wanted = _plain(name)
        return self._whole.get(wanted) or self._parts.get(wanted, [])


def _plain(text: str) -> str:
    return " ".join(re.split(r"[\s_\-]+", text.strip().lower()))
