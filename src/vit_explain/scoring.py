"""One evaluation while it goes on: pictures read, put together to mosaics, explained and measured, numbers kept."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .datasets import Item
from .errors import CaptureError, ImageError, ModelError, OptionError, OutputError
from .explainer import RGB, Explainer
from .image import Geometry
from .inputs import read
from .judging import Judge
from .metric_registry import Measured, Metric
from .mosaics import cell, composed, grouped
from .records import Record, Records
from .registry import Method
from .removal import Pictures
from .render import normalise

BASELINES = ("random", "centred_gaussian")  # always in the table: some metrics cannot tell methods from them
CONFIDENT = 0.5  # the least probability of the class of a picture that becomes part of a mosaic
SHADES = 255
MOSAIC = "mosaic "  # how names of pictures put together begin

Explained = Literal["predicted", "label"]  # the class that the model finds likeliest, or the true one
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures of one forward, with what is known of them."""

    names: list[str]
    pixels: Tensor
    labels: Tensor  # (B,), -1 where not known
    targets: Tensor | None = None  # (B,), where they are not read off the model's answer
    truth: Tensor | None = None  # (B, H, W) booleans at the pixels that patches cover
    one: bool = False  # the same picture B times, for other classes
    stamps: list[str] = field(default_factory=list)


class Scoring:
    """One evaluation while it goes on."""

    def __init__(
        self,
        explainer: Explainer,
        methods: Sequence[Method],
        metrics: Sequence[Metric],
        settings: Mapping[str, Mapping[str, Any]],
        target: Explained,
        seed: int,
        records: Records,
        complain: Callable[[str], None] | None,
        progress: Progress | None,
    ) -> None:
        self.explainer, self.judge = explainer, Judge(explainer, seed)
        self.methods, self.metrics = methods, metrics
        self.settings, self.target, self.records = settings, target, records
        self.complain = complain or (lambda _: None)
        self.progress = progress or (lambda _done, _total: None)
        self.done = self.total = 0
        self.refused: dict[str, str] = {}

    def images(self, items: Sequence[Item], max_pixels: int) -> None:
        """Every metric but those of mosaics."""
        metrics = [one for one in self.metrics if "mosaic" not in one.needs]
        stamps = {one.image: one.stamp for one in self.records if one.stamp}
        changed = [item.name for item in items if item.name in stamps and stamps[item.name] != item.stamp]
        if changed:
            raise OutputError(
                f"{changed[0]!r}{f' and {len(changed) - 1} more' if changed[1:] else ''} changed since they were "
                "measured; choose another folder"
            )
        left = {item.name: self._left([item.name], metrics, self.methods) for item in items}
        self._expect(sum(left.values()))
        for some in _batched([item for item in items if left[item.name]], self._together):
            batch = self._read(some, max_pixels)
            if batch.names:
                self._measure(batch, metrics)
            self._advance(sum(left[item.name] for item in some if item.name not in batch.names))

    def groups(self, items: Sequence[Item], side: int) -> dict[tuple[str, ...], list[str]]:
        """Names of pictures that the model knows with confidence, for a mosaic each; and what to call the mosaic when
        each of their classes is explained."""
        known = {one.image: one for one in self.records if one.method == BASELINES[0]}
        confident = {
            item.name: known[item.name].target
            for item in items
            if item.name in known
            and known[item.name].probability > CONFIDENT
            and known[item.name].label in (None, known[item.name].target)
        }
        return {
            tuple(group): [f"{MOSAIC}{' | '.join(group)}: {confident[name]}" for name in group]
            for group in grouped(confident, side * side)
        }

    def mosaics(
        self, groups: Mapping[tuple[str, ...], list[str]], items: Sequence[Item], side: int, max_pixels: int
    ) -> None:
        """The metrics of mosaics."""
        metrics = [one for one in self.metrics if "mosaic" in one.needs]
        by_name = {item.name: item for item in items}
        todo = {group: self._left(names, metrics, self.methods) for group, names in groups.items() if metrics}
        self._expect(sum(todo.values()))
        for group in [one for one, forwards in todo.items() if forwards]:
            names, pictures = groups[group], self._read([by_name[name] for name in group], max_pixels).pixels
            if len(pictures) < len(group):
                self._advance(todo[group])
                continue
            whole = composed(list(pictures), side)
            height, width = self.judge.pictures(whole[None]).anatomy.covers
            truth = torch.zeros(len(group), height, width, dtype=torch.bool)
            for place, mask in enumerate(truth):
                top, left, bottom, right = cell(place, side, (whole.shape[1], whole.shape[2]))
                mask[top:bottom, left:right] = True
            targets = torch.tensor([int(name.rpartition(": ")[2]) for name in names])
            pixels = whole.expand(len(group), -1, -1, -1)
            self._measure(Batch(names, pixels, targets, targets, truth, one=True), metrics)

    @functools.cached_property
    def _together(self) -> int:
        """Images that a forward takes."""
        size = self.explainer.preprocessing.size
        return self.explainer.subject(torch.zeros(1, RGB, *size))[0].together

    def _left(self, images: Sequence[str], metrics: Sequence[Metric], methods: Sequence[Method]) -> int:
        """About how many forwards there are to do for these images, with the default options; a backward counts as two,
        and of methods of others it may not be known."""
        maps, answers = 1 + sum(one.maps for one in metrics), sum(one.forwards for one in metrics)
        return sum(
            sum(self._lacks(image, one, metrics) for image in images)
            * (maps * max(1, one.forwards + 2 * one.backwards) + answers)
            for one in methods
        )

    def _expect(self, number: int) -> None:
        """So many more forwards are to do."""
        self.total += number
        self._advance(0)

    def _advance(self, number: int) -> None:
        """So many more are done."""
        self.done += number
        self.progress(self.done, self.total)

    def _lacks(self, image: str, method: Method, metrics: Sequence[Metric]) -> bool:
        return not self.records.complete(image, method.name, [one.name for one in metrics])

    def _read(self, items: Sequence[Item], max_pixels: int) -> Batch:
        """The pictures that can be read; of the others it is told why not."""
        found, geometries, pixels = [], [], []
        for item in items:
            try:
                one = read(item.picture(), self.explainer.preprocessing, max_pixels)
                truth = item.truth and torch.from_numpy(item.truth.seen(one.geometries[0]))
            except ImageError as error:
                self.complain(f"{item.name} is left out: {error}")
                continue
            found.append((item, truth))
            geometries += one.geometries
            pixels.append(one.pixels)
        if not found:
            return Batch([], torch.empty(0), torch.empty(0))
        together = torch.cat(pixels)
        labels = torch.tensor([-1 if item.label is None else item.label for item, _ in found])
        return Batch(
            [item.name for item, _ in found],
            together,
            labels,
            None,
            self._truths(together, found, geometries),
            stamps=[item.stamp for item, _ in found],
        )

    def _truths(self, pixels: Tensor, found: Any, geometries: Sequence[Geometry]) -> Tensor | None:
        """(B, H, W) where the objects are; nowhere where that is not known."""
        if all(truth is None for _, truth in found):
            return None
        height, width = self.judge.pictures(pixels).anatomy.covers
        return torch.stack(
            [
                (torch.zeros(geometry.input, dtype=torch.bool) if truth is None else truth)[:height, :width]
                for (_, truth), geometry in zip(found, geometries, strict=True)
            ]
        )

    def _measure(self, batch: Batch, metrics: Sequence[Metric]) -> None:
        """Every method that is not done on these pictures, one after the other."""
        pictures = self.judge.pictures(batch.pixels)
        whole = self.judge.whole(pictures)
        targets = batch.targets
        if targets is None:
            targets = batch.labels if self.target == "label" else whole.argmax(1).cpu()
        for method in self.methods:
            left = self._left(batch.names, metrics, [method])
            if left and method.name not in self.refused:
                lacking = [one for one in metrics if any(self._lacks(name, method, [one]) for name in batch.names)]
                try:
                    self.records.add(self._records(method, batch, pictures, whole, targets, lacking))
                except (CaptureError, ModelError, OptionError) as error:
                    self._refuse(method.name, error)
            self._advance(left)

    def _refuse(self, what: str, error: Exception) -> None:
        """Go on without a method, or a metric of it, and say so once."""
        if what not in self.refused:
            self.refused[what] = str(error)
            self.complain(f"{what} is left out: {error}")

    def _records(
        self,
        method: Method,
        batch: Batch,
        pictures: Pictures,
        whole: Tensor,
        targets: Tensor,
        metrics: Sequence[Metric],
    ) -> list[Record]:
        options = self.settings["methods"][method.name]
        case = self.judge.case(
            method, options, pictures, whole, targets, labels=batch.labels, truth=batch.truth, one=batch.one
        )
        known: list[Metric] = []
        nothing: dict[str, list[float | None]] = {}
        for one in metrics:
            if "truth" in one.needs and case.truth is None:
                nothing[one.name] = [None]
            elif f"{one.name} of {method.name}" not in self.refused:
                known.append(one)
        with contextlib.suppress(CaptureError, ModelError, OptionError):  # then each metric is asked alone
            case.prepare([part for one in known for part in one.parts(**self.settings["metrics"][one.name])])
        numbers: dict[str, Tensor] = {}
        curves: dict[str, Tensor] = {}
        for one in known:
            try:
                measured = one.run(case, **self.settings["metrics"][one.name])
            except (CaptureError, ModelError, OptionError) as error:
                self._refuse(f"{one.name} of {method.name}", error)
                continue
            if isinstance(measured, Measured):
                curves[one.name], measured = measured.curve, measured.values
            numbers[one.name] = measured.reshape(len(batch.names), -1).double().cpu()
        shades = _shades(case.at("patch"), pictures.anatomy.grid, method.signed_with(options))
        probability = case.of_target(whole.softmax(-1))
        return [
            Record(
                name,
                method.name,
                int(targets[i]),
                None if batch.labels[i] < 0 else int(batch.labels[i]),
                None if batch.labels[i] < 0 else bool(whole[i].argmax() == batch.labels[i]),
                round(float(probability[i]), 6),
                round(case.seconds / len(batch.names), 5),
                {key: [_plain(v) for v in values[i].tolist()] for key, values in numbers.items()} | nothing,
                {key: [round(v, 4) for v in curve[i].tolist()] for key, curve in curves.items()},
                shades[i],
                case.warnings[i],
                batch.stamps[i] if batch.stamps else "",
            )
            for i, name in enumerate(batch.names)
        ]


def _batched(items: Sequence[Item], number: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while some := list(itertools.islice(rest, number)):
        yield some


def _plain(value: float) -> float | None:
    """A number in as many digits as float32 has; None for NaN."""
    return None if value != value or abs(value) == torch.inf else float(f"{value:.7g}")


def _shades(maps: Tensor, grid: tuple[int, int], signed: bool) -> list[list[list[int]]]:
    """Maps (B, h·w) as they are drawn, see ``render.normalise``: 0 to 255."""
    shown = normalise(maps.cpu().numpy().reshape(-1, *grid), signed)
    return (SHADES * shown).round().astype(int).tolist()
