"""Scores of methods on many images: which map can be trusted, by every metric, on one footing."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import metrics as _registers_them  # noqa: F401
from .datasets import Item, chosen, read_dataset
from .errors import CaptureError, ImageError, ModelError, OptionError
from .explainer import RGB, Explainer
from .image import Geometry
from .inputs import read
from .judging import Judge
from .metric_registry import Measured, Metric, choose_metrics
from .mosaics import cell, composed, grouped
from .photos import DEFAULT_MAX_PIXELS
from .records import Record, Records, alone
from .registry import METHODS, Method, choose_methods
from .removal import Pictures
from .render import normalise
from .results import Evaluation

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


def evaluate(
    data: str | Path,
    model: nn.Module | str | Explainer = "bundled",
    methods: str | Sequence[str] = "fast",
    metrics: str | Sequence[str] = "fast",
    *,
    images: int | None = None,
    seed: int = 0,
    out: str | Path = "vit-explain-evaluation",
    target: Explained = "predicted",
    mosaic: int = 2,
    others: Sequence[Method] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    metric_options: Mapping[str, Mapping[str, Any]] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress | None = None,
    complain: Callable[[str], None] | None = None,
) -> Evaluation:
    """Score methods by metrics on the images of a dataset, with the random and the centred Gaussian map beside them.

    ``data``: see ``datasets.read_dataset``. ``methods``: as in ``Explainer.compare``. ``metrics``: names; "fast" stands
    for those that need no further maps, "all" for all. ``images``: so many, chosen with ``seed`` evenly over classes.
    ``others``: methods of your own or of other packages, see ``other_method``, judged on the same pictures.
    ``target``: which class is explained. ``mosaic``: photos a side of the mosaics for ``grid_pointing``. ``options``,
    ``metric_options``: keywords of each method and metric, by its name. ``out``: where every number is kept as it is
    found; the same call goes on where it was stopped. ``progress``: called as ``progress(done, total)`` in images times
    methods; mosaics add to the total once it is known which photos they are made of. ``complain``: told of pictures
    that cannot be read and methods that cannot explain the model.
    """
    explainer = model if isinstance(model, Explainer) else Explainer(model)
    classes = explainer.family.classes(explainer.plain)
    if classes == 0:
        raise ModelError(f"{explainer.model_name} has no classes, which evaluation needs: give it a head or texts")
    if target not in ("predicted", "label"):
        raise OptionError(f"the target of an evaluation is 'predicted' or 'label', not {target!r}")
    if mosaic < 2:
        raise OptionError(f"a mosaic has at least 2 pictures a side, not {mosaic}")
    wanted = choose_methods([*([methods] if isinstance(methods, str) else methods), *BASELINES])
    for one in others:
        if one.name in METHODS or one.name in [known.name for known in wanted]:
            raise OptionError(f"there is a method {one.name!r} already; give yours another name")
        wanted.append(one)
    measures = choose_metrics([metrics] if isinstance(metrics, str) else metrics)
    settings = _settings(wanted, measures, options or {}, metric_options or {})
    items = chosen(read_dataset(data, explainer.labels, classes), images, seed)
    if target == "label" and any(item.label is None for item in items):
        raise ImageError("some images have no class, so their true class cannot be explained; take the predicted one")
    record = {
        "model": explainer.model_name,
        "data": Path(data).name,
        "seed": seed,
        "target": target,
        "mosaic": mosaic,
        "metrics": settings["metrics"],
        # Of every method, so that another call cannot mix numbers of other options among them.
        "options": settings["methods"],
    }
    run = _Run(explainer, wanted, measures, settings, target, seed, complain, progress)
    with alone(Path(out)):
        run.records = Records(Path(out), record)
        run.images(items, max_pixels)
        groups = run.groups(items, mosaic)
        run.mosaics(groups, items, mosaic, max_pixels)
    kept = {item.name for item in items} | {name for names in groups.values() for name in names}
    found = [one for one in run.records if one.image in kept]
    scored, known = {one.method for one in found}, [*choose_methods(["all"]), *others]
    return Evaluation(
        found,
        {one.name: one for one in known if one.name in scored},
        [one.name for one in choose_metrics(list(run.records.settings["metrics"]))],
        run.records.settings,
        run.refused,
        {item.name: item.source for item in items},
        explainer.preprocessing,
        explainer.labels,
    )


def _settings(
    methods: Sequence[Method],
    metrics: Sequence[Metric],
    options: Mapping[str, Mapping[str, Any]],
    metric_options: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    for given, known, kind in ((options, methods, "methods"), (metric_options, metrics, "metrics")):
        for name in given:
            if name not in [one.name for one in known]:
                raise OptionError(f"options are given for {name!r}, which is not among the {kind}")
    return {
        "methods": {one.name: one.settings(dict(options.get(one.name, {}))) for one in methods},
        "metrics": {one.name: one.settings(dict(metric_options.get(one.name, {}))) for one in metrics},
    }


class _Run:
    """One evaluation while it goes on."""

    records: Records

    def __init__(
        self,
        explainer: Explainer,
        methods: Sequence[Method],
        metrics: Sequence[Metric],
        settings: Mapping[str, Mapping[str, Any]],
        target: Explained,
        seed: int,
        complain: Callable[[str], None] | None,
        progress: Progress | None,
    ) -> None:
        self.explainer, self.judge = explainer, Judge(explainer, seed)
        self.methods, self.metrics = methods, metrics
        self.settings, self.target = settings, target
        self.complain = complain or (lambda _: None)
        self.progress = progress or (lambda _done, _total: None)
        self.done = self.total = 0
        self.refused: dict[str, str] = {}

    def images(self, items: Sequence[Item], max_pixels: int) -> None:
        """Every metric but those of mosaics."""
        metrics = [one for one in self.metrics if "mosaic" not in one.needs]
        self.total += len(items) * len(self.methods)
        left = [item for item in items if any(self._lacks(item.name, one, metrics) for one in self.methods)]
        self._advance((len(items) - len(left)) * len(self.methods))
        for some in _batched(left, self._together):
            batch = self._read(some, max_pixels)
            if batch.names:
                self._measure(batch, metrics)
            self._advance((len(some) - len(batch.names)) * len(self.methods))

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
        if metrics:
            self.total += sum(map(len, groups.values())) * len(self.methods)
        for group, names in groups.items() if metrics else ():
            lacking = any(self._lacks(name, one, metrics) for name in names for one in self.methods)
            pictures = self._read([by_name[name] for name in group], max_pixels).pixels if lacking else torch.empty(0)
            if len(pictures) < len(group):
                self._advance(len(group) * len(self.methods))
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

    def _advance(self, number: int) -> None:
        """So many more images times methods are done."""
        self.done += number
        self.progress(self.done, self.total)

    def _lacks(self, image: str, method: Method, metrics: Sequence[Metric]) -> bool:
        return not self.records.complete(image, method.name, [one.name for one in metrics])

    def _read(self, items: Sequence[Item], max_pixels: int) -> Batch:
        """The pictures that can be read; of the others it is told why not."""
        found, geometries, pixels = [], [], []
        for item in items:
            try:
                one = read(item.source, self.explainer.preprocessing, max_pixels)
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
            [item.name for item, _ in found], together, labels, None, self._truths(together, found, geometries)
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
            if method.name not in self.refused and any(self._lacks(name, method, metrics) for name in batch.names):
                lacking = [one for one in metrics if any(self._lacks(name, method, [one]) for name in batch.names)]
                try:
                    self.records.add(self._records(method, batch, pictures, whole, targets, lacking))
                except (CaptureError, ModelError, OptionError) as error:
                    self.refused[method.name] = str(error)
                    self.complain(f"{method.name} is left out: {error}")
            self._advance(len(batch.names))

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
        known = [one for one in metrics if "truth" not in one.needs or case.truth is not None]
        nothing: dict[str, list[float | None]] = {one.name: [None] for one in metrics if one not in known}
        case.prepare([part for one in known for part in one.parts(**self.settings["metrics"][one.name])])
        numbers: dict[str, Tensor] = {}
        curves: dict[str, Tensor] = {}
        for one in known:
            measured = one.run(case, **self.settings["metrics"][one.name])
            if isinstance(measured, Measured):
                curves[one.name], measured = measured.curve, measured.values
            numbers[one.name] = measured.reshape(len(batch.names), -1).double().cpu()
        shades = _shades(case.at("patch"), pictures.anatomy.grid, method.signed)
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
