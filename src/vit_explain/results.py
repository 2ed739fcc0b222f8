"""What an evaluation found: means with their intervals, ranks, and every single number."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .datasets import Item
from .errors import OptionError
from .image import Preprocessing
from .metric_registry import METRICS
from .places import Rows, places, with_interval
from .records import Record
from .registry import Method

if TYPE_CHECKING:
    import pandas

# Families whose ranks say whether a map can be trusted; complexity says what it is like.
JUDGING = ("faithfulness", "localisation", "robustness", "sanity")


@dataclass(frozen=True)
class Score:
    """A method's number in a metric, with a 95 % bootstrap interval over images, and its place among the methods.

    ``rank`` and ``place`` compare with each other method on the images that both have; see ``places.Place``.
    """

    value: float
    interval: tuple[float, float] | None  # of a single image none is known
    images: int  # mosaics where the metric is of these
    rank: int
    place: float


@dataclass(eq=False)
class Evaluation:
    """The records of methods and metrics on images. ``refused``: why other methods could not explain the model."""

    records: Sequence[Record]
    methods: Mapping[str, Method]
    metrics: Sequence[str]
    settings: Mapping[str, Any]
    refused: Mapping[str, str]
    items: Mapping[str, Item]  # image -> what the dataset has of it
    preprocessing: Preprocessing
    labels: Sequence[str] | None

    @cached_property
    def scores(self) -> dict[str, dict[str, Score]]:
        """metric -> method -> score; methods without a number in it are absent, and so are metrics without any."""
        found: dict[str, dict[str, Score]] = {}
        for metric in self.metrics:
            rows = {method: self.rows_of(metric, method) for method in self.methods}
            rows = {method: own for method, own in rows.items() if own}
            placed = places(rows, METRICS[metric])
            scores = {
                method: Score(
                    *with_interval(np.array(list(own.values())), METRICS[metric]),
                    len(own),
                    placed[method].rank,
                    placed[method].share,
                )
                for method, own in rows.items()
            }
            found |= {metric: scores} if scores else {}
        return found

    @cached_property
    def standing(self) -> dict[str, float]:
        """For each method, from 0 (last) to 1 (first): its mean place in each family of metrics, and their mean.

        Families of ``JUDGING`` count alike, however many metrics they have. Baselines have a place, too. A metric that
        has a number of no more than half of the methods says something of these alone, and is left out. Methods that
        lack another metric's number have their place from the others of the family; without any in a family they are
        last in it, as they cannot be judged there.
        """
        shares: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for metric, scores in self.scores.items():
            if len(scores) > len(self.methods) / 2:
                for method, score in scores.items():
                    shares[METRICS[metric].family][method].append(score.place)
        judged = [family for family in JUDGING if family in shares]
        return {
            method: float(np.mean([np.mean(shares[family].get(method, [0.0])) for family in judged]))
            for method in self.methods
            if judged
        }

    @cached_property
    def seconds(self) -> dict[str, float]:
        """For each method, the median of its seconds an image."""
        return {
            method: float(np.median([record.seconds for record in self.of(method)]))
            for method in self.methods
            if self.of(method)
        }

    @property
    def order(self) -> list[str]:
        """The methods, the one of the highest standing first."""
        return sorted(self.methods, key=lambda name: -self.standing.get(name, 0))

    @property
    def images(self) -> int:
        """How many images there are numbers of, mosaics left out."""
        return len({record.image for record in self.records if record.image in self.items})

    def rows_of(self, metric: str, method: str) -> Rows:
        """image -> its numbers (c,) in a metric, without images of which it says nothing.

        The classes of a mosaic are not independent of each other: the mosaic is one image, with their mean.
        """
        rows: dict[str, list[list[Any]]] = defaultdict(list)
        for one in self.of(method):
            if metric in one.numbers and None not in one.numbers[metric]:
                rows[one.image if one.image in self.items else one.image.rpartition(": ")[0]].append(
                    one.numbers[metric]
                )
        return {image: np.array(found, dtype=float).mean(0) for image, found in rows.items()}

    def curves(self, metric: str, method: str) -> NDArray[np.float64]:
        """(n, points): every image's curve in a metric; no points for metrics that are no area under one."""
        rows = [one.curves[metric] for one in self.of(method) if metric in one.curves]
        return np.array(rows, dtype=float) if rows else np.empty((0, 0))

    def of(self, method: str) -> list[Record]:
        """The records of a method."""
        return self._by_method[method]

    @cached_property
    def _by_method(self) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            found[record.method].append(record)
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Every single number, one a row."""
        return [
            {
                "image": one.image,
                "method": one.method,
                "metric": metric,
                "component": component,
                "value": value,
                "target": one.target,
                "label": one.label,
                "correct": one.correct,
                "probability": one.probability,
                "seconds": one.seconds,
            }
            for one in self.records
            for metric, values in one.numbers.items()
            for component, value in enumerate(values)
        ]

    def table(self) -> list[dict[str, Any]]:
        """Every score, one a row."""
        return [
            {
                "metric": metric,
                "direction": METRICS[metric].direction,
                "method": method,
                "value": score.value,
                "low": score.interval[0] if score.interval else None,
                "high": score.interval[1] if score.interval else None,
                "rank": score.rank,
                "images": score.images,
                "forwards": self.methods[method].forwards,
                "backwards": self.methods[method].backwards,
                "seconds": self.seconds[method],
            }
            for metric, scores in self.scores.items()
            for method, score in scores.items()
        ]

    def frame(self) -> pandas.DataFrame:
        """``rows()`` as a data frame of pandas, which is not installed with this package."""
        try:
            import pandas
        except ImportError:
            raise OptionError("data frames need pandas: pip install pandas; rows() gives the same as a list") from None
        return pandas.DataFrame(self.rows())

    def csv(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        """``rows()`` or ``table()`` as the bytes of a CSV file."""
        file = io.StringIO(newline="")
        if rows:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return file.getvalue().encode("utf-8")

    def parquet(self) -> bytes | None:
        """``rows()`` as the bytes of a Parquet file; None where pyarrow is not installed."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            return None
        file = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(self.rows()), file)
        return file.getvalue()
