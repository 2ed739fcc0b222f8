"""Images to evaluate on: a folder with one folder a class, a list with boxes or masks, or a saved dataset."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .errors import ImageError, near
from .labels import Names
from .photos import ImageSource
from .saved import read_saved
from .truth import Box, Truth

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
WORDNET = re.compile(r"n\d{8}")
CORNERS = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Item:
    """One image of a dataset."""

    name: str  # its own among the dataset's
    source: ImageSource | Callable[[], ImageSource]
    label: int | None = None  # the true class, where it is known
    truth: Truth | None = None

    @property
    def stamp(self) -> str:
        """Another one once the file, its class, or what is known of its object has changed; of files, their size is
        looked at."""
        files = [file for file in (self.source, self.truth and self.truth.mask) if isinstance(file, Path)]
        try:
            sizes = [file.stat().st_size for file in files]
        except OSError:
            sizes = []
        return hashlib.blake2b(repr((sizes, self.label, self.truth)).encode(), digest_size=6).hexdigest()

    def picture(self) -> ImageSource:
        """What ``photos.load_image`` reads; of saved datasets, from the disk now. Raises ``ImageError``."""
        return self.source() if callable(self.source) else self.source


def read_dataset(source: str | Path, labels: Sequence[str] | None, classes: int) -> list[Item]:
    """Every image of a dataset, in the order of their names.

    ``source``: a folder with one folder of pictures a class, named by label, number or WordNet id, or where labels are
    not known, as many folders as classes, in their order; a folder of pictures alone; a ``.csv``, ``.json`` or
    ``.jsonl`` list whose rows hold ``image`` and, as far as they are known, ``label``, ``left``, ``top``, ``right``,
    ``bottom`` (pixels; a row a box) or ``mask``, of one class a picture, both of the picture upright, as its EXIF data
    turn it; or a folder that Hugging Face's datasets saved. ``labels``, ``classes``: the model's. Raises
    ``ImageError``.
    """
    path = Path(source)
    if path.is_file() and path.suffix in (".csv", ".json", ".jsonl"):
        items = _listed(path, labels, classes)
    elif path.is_dir() and _is_saved(path):
        items = _saved(path, labels, classes)
    elif path.is_dir():
        items = _foldered(path, labels, classes)
    else:
        raise ImageError(f"{str(path)!r} is neither a folder of pictures nor a list of them (.csv, .json, .jsonl)")
    if not items:
        raise ImageError(f"there are no pictures in {str(path)!r}")
    return sorted(items, key=lambda item: item.name)


def chosen(items: Sequence[Item], number: int | None, seed: int) -> list[Item]:
    """So many of them, by chance, as evenly over the classes as they allow; all without a number.

    The first n of a larger choice with the same seed are the choice of n.
    """
    shuffled = sorted(items, key=lambda item: item.name)
    random.Random(seed).shuffle(shuffled)
    by_class: dict[int | None, list[Item]] = defaultdict(list)
    for item in shuffled:
        by_class[item.label].append(item)
    order = sorted(by_class, key=lambda label: -1 if label is None else label)
    rounds = zip_longest(*(by_class[label] for label in order))
    mixed = [item for row in rounds for item in row if item is not None]
    return mixed if number is None else mixed[:number]


class Classes:
    """The model's classes, found by label, number, or WordNet id."""

    def __init__(self, labels: Sequence[str] | None, classes: int) -> None:
        self._classes = classes
        self._labels = list(labels or [])
        self._names = Names(self._labels)

    def number(self, name: str) -> int | None:
        """The class of this name; None where there is none, or more than one."""
        text = name.strip()
        found = self._names.find(text)
        if not found and text.isascii() and text.isdigit() and int(text) < self._classes:
            return int(text)
        if not found and WORDNET.fullmatch(text):
            found = self._of_synset(text)
        return found[0] if len(found) == 1 else None

    def required(self, name: str, where: str) -> int:
        """The class of this name; an error that says where it was read otherwise."""
        found = self.number(name)
        if found is None:
            known = near(name, self._labels) if self._labels else f"the model has {self._classes} classes by number"
            raise ImageError(f"{where}: the model has no class {name!r}; {known}")
        return found

    def _of_synset(self, text: str) -> list[int]:
        from timm.data.imagenet_info import ImageNetInfo

        try:
            words = ImageNetInfo("imagenet-22k").label_name_to_description(text)
        except KeyError:
            return []
        # Of two classes of the same name, the other synonyms tell which.
        of_words = [self._names.find(word) for word in words.split(",")]
        return self._names.find(words) or sorted({found[0] for found in of_words if len(found) == 1})


def _foldered(folder: Path, labels: Sequence[str] | None, classes: int) -> list[Item]:
    known = Classes(labels, classes)
    inside = sorted(part for part in folder.iterdir() if part.is_dir() and any(_pictures(part)))
    if not inside:
        return [Item(file.relative_to(folder).as_posix(), file) for file in _pictures(folder)]
    numbers: dict[str, int] = {}
    found = {part.name: known.number(part.name) for part in inside}
    if labels is None and len(inside) == classes and not any(number is not None for number in found.values()):
        # As torchvision's ImageFolder, with which such models are trained, numbers them.
        numbers = {part.name: number for number, part in enumerate(inside)}
    else:
        numbers = {name: known.required(name, f"the folder {folder}") for name in found}
    return [
        Item(file.relative_to(folder).as_posix(), file, numbers[part.name])
        for part in inside
        for file in _pictures(part)
    ]


def _pictures(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.suffix.lower() in PICTURES and file.is_file())


def _listed(path: Path, labels: Sequence[str] | None, classes: int) -> list[Item]:
    named = Classes(labels, classes)
    boxes: dict[str, list[Box]] = defaultdict(list)
    first: dict[str, Mapping[str, Any]] = {}
    for number, row in enumerate(_rows(path), 1):
        name = str(row.get("image") or "").strip()
        if not name:
            raise ImageError(f"{path}, row {number}: there is no image; each row needs a column or key of this name")
        if not (path.parent / name).is_file():
            raise ImageError(f"{path}, row {number}: there is no file {name!r} beside the list")
        known = first.setdefault(name, row)
        for key in ("label", "mask"):
            if _given(row, key) and str(row[key]) != str(known.get(key)):
                raise ImageError(
                    f"{path}, row {number}: {name!r} has another {key} in a row above; a list has one class a picture, "
                    "with a box of it in each row"
                )
        if any(_given(row, corner) for corner in CORNERS):
            boxes[name].append(_box(row, f"{path}, row {number}"))
    items = []
    for name, row in first.items():
        label = named.required(str(row["label"]), str(path)) if _given(row, "label") else None
        mask = path.parent / str(row["mask"]) if _given(row, "mask") else None
        truth = Truth(tuple(boxes[name]), mask) if boxes[name] or mask else None
        items.append(Item(name, path.parent / name, label, truth))
    return items


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text)))
        rows = json.loads(text) if path.suffix == ".json" else [json.loads(s) for s in text.splitlines() if s.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise ImageError(f"the list {path} cannot be read: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ImageError(f"the list {path} must hold one object a picture, with the key image")
    return rows


def _given(row: Mapping[str, Any], key: str) -> bool:
    return row.get(key) not in (None, "")


def _box(row: Mapping[str, Any], where: str) -> Box:
    try:
        left, top, right, bottom = corners = [float(row[corner]) for corner in CORNERS]
        if not all(map(math.isfinite, corners)):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ImageError(f"{where}: a box needs the numbers left, top, right and bottom, in pixels") from None
    if not (left < right and top < bottom):
        raise ImageError(f"{where}: a box needs left < right and top < bottom, not {(left, top, right, bottom)}")
    return left, top, right, bottom


def _is_saved(folder: Path) -> bool:
    """Parquet files beside pictures are something else, such as the numbers of an evaluation."""
    if any((folder / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
        return True
    return any(folder.rglob("*.parquet")) and not any(_pictures(folder))


def _saved(folder: Path, labels: Sequence[str] | None, classes: int) -> list[Item]:
    known = Classes(labels, classes)
    return [
        Item(row.name, row.read, None if row.label is None else known.required(row.label, "the dataset"))
        for row in read_saved(folder)
    ]
