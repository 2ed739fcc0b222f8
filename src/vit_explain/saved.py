"""Datasets that Hugging Face's datasets saved: their classes are read at once, a picture when its turn comes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ImageError
from .photos import ImageSource

GROUPS = 2  # of a Parquet file's rows, some hundred each, that are kept for the pictures to come


@dataclass(frozen=True)
class Row:
    """One picture of a saved dataset."""

    name: str
    label: str | None
    read: Callable[[], ImageSource]


def read_saved(folder: Path) -> list[Row]:
    """Every row of what ``save_to_disk`` wrote, or of a folder of Parquet files. Raises ``ImageError``."""
    try:
        import datasets
    except ImportError:
        raise ImageError("saved datasets need a package of their own: pip install 'vit-explain[hf]'") from None
    try:
        if not any(folder.rglob("*.arrow")):
            return list(_of_parquet(sorted(folder.rglob("*.parquet"))))
        read: Any = datasets.load_from_disk(str(folder))
        parts = read.items() if isinstance(read, dict) else [("", read)]
        return [row for part, rows in parts for row in _of_arrow(part, rows)]
    except ImageError:
        raise
    except Exception as error:  # whatever those libraries raise of a damaged folder
        raise ImageError(f"the dataset {folder} cannot be read: {error}") from None


def _of_arrow(part: str, rows: Any) -> Iterator[Row]:
    import datasets

    image, label = _columns(rows.features)
    pictures = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    labels = _names(rows.features, label, rows[label][:] if label else [None] * len(rows))
    for number, name in enumerate(labels):
        yield Row(f"{part}/{number}", name, functools.partial(_picture, _of_row, pictures, number, image))


def _of_row(rows: Any, number: int, image: str) -> Any:
    return rows[number][image]


def _of_parquet(files: Sequence[Path]) -> Iterator[Row]:
    """Without a copy in a cache, which ``load_dataset`` would make of them."""
    import datasets
    from pyarrow.parquet import ParquetFile

    number = 0
    for file in files:
        with ParquetFile(file) as table:
            features = datasets.Features.from_arrow_schema(table.schema_arrow)
            image, label = _columns(features)
            rows = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
            stored = table.read(columns=[label]).column(0).to_pylist() if label else [None] * sum(rows)
        labels = iter(_names(features, label, stored))
        for group, count in enumerate(rows):
            for place in range(count):
                read = functools.partial(_picture, _of_group, file, group, place, image)
                yield Row(f"images/{number}", next(labels), read)
                number += 1


def _of_group(file: Path, group: int, place: int, image: str) -> Any:
    return _group(file, group, image)[place].as_py()


@functools.lru_cache(maxsize=GROUPS)
def _group(file: Path, group: int, image: str) -> Any:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as table:
        return table.read_row_group(group, columns=[image]).column(0)


def _columns(features: Any) -> tuple[str, str | None]:
    """The first column of pictures, and the first of classes."""
    import datasets

    of_kind = {
        kind: [name for name, feature in features.items() if isinstance(feature, kind)]
        for kind in (datasets.Image, datasets.ClassLabel)
    }
    if not of_kind[datasets.Image]:
        raise ImageError(f"the dataset has no column of pictures; its columns: {', '.join(features)}")
    return of_kind[datasets.Image][0], next(iter(of_kind[datasets.ClassLabel]), None)


def _names(features: Any, label: str | None, stored: Sequence[int | None]) -> list[str | None]:
    """Names of classes; a number below 0, as sets without them have it, is none."""
    return [None if number is None or number < 0 else features[label].int2str(number) for number in stored]


def _picture(stored: Callable[..., Any], *where: Any) -> ImageSource:
    try:
        found = stored(*where)
    except Exception as error:
        raise ImageError(f"this row of the dataset cannot be read: {error}") from None
    if not found or not (found["bytes"] or found["path"]):
        raise ImageError("there is no picture in this row of the dataset")
    return found["bytes"] or Path(found["path"])
