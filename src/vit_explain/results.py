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
from .records import Record
from .registry import Method

if TYPE_CHECKING:
    import pandas

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percent
CHUNK = 200  # resamples at a time
DIGITS = 4  # of a number that places go by; what lies beyond is rounding, and would part methods that are equal
# Families whose ranks say whether a map can be trusted; complexity says what it is like.
JUDGING = ("faithfulness", "localisation", "robustness", "sanity")


@dataclass(frozen=True)
class Score:
    """A method's number in a metric, with a 95 % bootstrap interval over images, and its place among the methods."""

    value: float
    low: float
    high: float
    images: int
    rank: int


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
            estimates = {}
            for method in self.methods:
                rows = self.numbers(metric, method)
                if len(rows):
                    estimates[method] = (*_interval(rows, metric), len(rows))
            if estimates:
                sign = -1 if METRICS[metric].higher_is_better else 1
                values = {method: sign * float(f"{value:.{DIGITS}g}") for method, (value, *_) in estimates.items()}
                found[metric] = {
                    method: Score(
                        value, low, high, images, 1 + sum(other < values[method] for other in values.values())
                    )
                    for method, (value, low, high, images) in estimates.items()
                }
        return found

    @cached_property
    def standing(self) -> dict[str, float]:
        """For each method, from 0 (last) to 1 (first): its mean place in each family of metrics, and their mean.

        Families of ``JUDGING`` count alike, however many metrics they have. Baselines have a place, too. Methods that
        lack a metric's number have their place from the others of the family; without any in a family they are last
        in it, as they cannot be judged there.
        """
        places: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for metric, scores in self.scores.items():
            for method, score in scores.items():
                better = sum(other.rank > score.rank for other in scores.values())
                equal = sum(other.rank == score.rank for other in scores.values()) - 1
                places[METRICS[metric].family][method].append((better + equal / 2) / max(1, len(scores) - 1))
        judged = [family for family in JUDGING if family in places]
        return {
            method: float(np.mean([np.mean(places[family].get(method, [0.0])) for family in judged]))
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

    def numbers(self, metric: str, method: str) -> NDArray[np.float64]:
        """(n, c): every image's numbers in a metric, without images of which it says nothing."""
        rows = [one.numbers[metric] for one in self.of(method) if metric in one.numbers]
        return np.array([row for row in rows if None not in row], dtype=float).reshape(
            -1, max(map(len, rows), default=1)
        )

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
                "low": score.low,
                "high": score.high,
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


def _interval(rows: NDArray[np.float64], metric: str) -> tuple[float, float, float]:
    """A metric's number over images, and the middle 95 % of what it is over images drawn with replacement."""
    combine = METRICS[metric].combine
    generator = np.random.default_rng(0)
    drawn: list[NDArray[np.float64]] = []
    for _ in range(0, RESAMPLES, CHUNK):
        drawn.append(combine(rows[generator.integers(0, len(rows), (CHUNK, len(rows)))]))
    low, high = np.percentile(np.concatenate(drawn), INTERVAL)
    return float(combine(rows[None])[0]), float(low), float(high)
