"""What is known of each image and method, on disk as it is found, so that an evaluation can be stopped anywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import OutputError
from .store import write_folder

SETTINGS, NUMBERS, LOCK = "evaluation.json", "numbers.jsonl", ".lock"
GROWING = ("metrics", "options")  # settings by name, of which there may be more the next time


@dataclass
class Record:
    """One method on one image, or on one class of a mosaic."""

    image: str
    method: str
    target: int
    label: int | None
    correct: bool | None  # whether the model's first class is the true one
    probability: float  # of the class explained
    seconds: float  # for the map
    numbers: dict[str, list[float | None]]  # metric -> its numbers, None for NaN
    curves: dict[str, list[float]] = field(default_factory=dict)  # metric -> the curve it is the area of
    map: list[list[int]] = field(default_factory=list)  # on patches as it is drawn, 0 to 255
    warnings: list[str] = field(default_factory=list)
    stamp: str = ""  # of the file and what was known of it, see ``datasets.Item``; mosaics have none


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Have the folder for oneself: two that write at once could tear each other's lines. An error where it is taken."""
    from filelock import FileLock, Timeout  # comes with torch

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            f"another evaluation is at work in {str(folder)!r}; wait for it, or choose another folder with --out"
        ) from None
    except OSError as error:
        raise OutputError(f"cannot write to {str(folder)!r}: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


class Records:
    """The records of one evaluation in a folder, one line each; nothing is ever written over."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = dict(settings)
        self._done: dict[tuple[str, str], Record] = {}
        self._settle()
        self._read()

    def __iter__(self) -> Iterator[Record]:
        return iter(self._done.values())

    def complete(self, image: str, method: str, metrics: Iterable[str]) -> bool:
        """Whether a method on an image is done, and all of these metrics known of it."""
        known = self._done.get((image, method))
        return known is not None and known.numbers.keys() >= set(metrics)

    def add(self, records: list[Record]) -> None:
        """Write records down; they are on the disk when this returns. What is known of the same image and method
        already is kept beside them."""
        text = "".join(json.dumps(asdict(record), allow_nan=False) + "\n" for record in records)
        try:
            with (self.folder / NUMBERS).open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write to {str(self.folder)!r}: {error.strerror}") from None
        for record in records:
            self._keep(record)

    def _keep(self, record: Record) -> None:
        key = record.image, record.method
        known = self._done.get(key)
        if known is not None:
            record = replace(
                record, numbers=known.numbers | record.numbers, curves=known.curves | record.curves, map=known.map,
                seconds=known.seconds,
            )  # fmt: skip
        self._done[key] = record

    def _settle(self) -> None:
        """The settings in the folder must be these, but that more metrics and methods with options may come."""
        file = self.folder / SETTINGS
        if not file.exists():
            if (self.folder / NUMBERS).exists():
                raise OutputError(f"{str(self.folder)!r} holds numbers without their settings; choose another folder")
            write_folder(self.folder, {}, self.settings, SETTINGS)
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise OutputError(f"{str(file)!r} is damaged; choose another folder") from None
        found.pop("files", None)
        wanted = json.loads(json.dumps(self.settings))
        differ = [key for key in wanted if key not in GROWING and found.get(key) != wanted[key]]
        for key in GROWING:
            known = found.setdefault(key, {})
            differ += [f"{key} of {name}" for name in wanted[key] if name in known and known[name] != wanted[key][name]]
        if differ:
            raise OutputError(
                f"{str(self.folder)!r} holds an evaluation with other settings ({', '.join(differ)}); choose another "
                "folder with --out, or the same settings"
            )
        grown = found | {key: found[key] | wanted[key] for key in GROWING}
        if grown != found:
            write_folder(self.folder, {}, grown, SETTINGS)
        self.settings = grown

    def _read(self) -> None:
        file = self.folder / NUMBERS
        if not file.exists():
            return
        whole = 0
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):  # cut off when the run was stopped
                    break
                try:
                    record = Record(**json.loads(line))
                except (ValueError, TypeError):
                    raise OutputError(
                        f"line {number} of {str(file)!r} is damaged, or of another version; remove the line to have "
                        "its numbers measured again, or choose another folder"
                    ) from None
                self._keep(record)
                whole += len(line)
            torn = file.stat().st_size - whole
        if torn:
            with file.open("rb+") as lines:
                lines.truncate(whole)
