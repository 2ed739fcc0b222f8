"""Methods asked of one model: with as few looks as they need, of as many images at once as there is memory for."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CaptureError, ModelError, TargetError
from .family import Family
from .image import Preprocessing
from .inquiry import Subject, exhausted
from .sharing import DIFFERENTIATED, Asked, Result, SharedLook, all_needs, groups
from .targets import Target, resolve, spread


class Runner:
    """Runs methods on one model of a family. ``preprocessing``, ``labels``: see ``Explainer``."""

    def __init__(
        self, model: nn.Module, family: Family, preprocessing: Preprocessing | None, labels: Sequence[str] | None
    ) -> None:
        self.model, self.family = model, family
        self.preprocessing = preprocessing or family.preprocessing(model)
        # See ``Subject``; grows where an accelerator's memory runs out for what such methods need at such a size.
        self._pieces: defaultdict[Hashable, int] = defaultdict(lambda: 1)
        if labels is not None:
            classes = family.classes(model)
            if len(labels) != classes:
                raise ModelError(f"{len(labels)} labels were given, but {family.name(model)} has {classes} classes")
            self.labels = list(labels)

    @functools.cached_property
    def labels(self) -> list[str] | None:
        """Class names, where they are known; looked up when first asked for, since ImageNet's fill megabytes."""
        return self.family.labels(self.model)

    def run(
        self,
        pixels: Tensor,
        asked: Sequence[Asked],
        target: Any,
        refused: dict[str, str] | None = None,
        *,
        timed: bool = False,
    ) -> tuple[dict[str, Result], float]:
        """What each method says, by name, and the seconds of the looks that several of them shared.

        ``target``: see ``targets.spread``. ``refused``, ``timed``: see ``SharedLook``; without the former the first
        refusal is raised.
        """
        found: dict[str, Result] = {}
        shared, waiting = 0.0, groups(asked)
        while waiting:
            group = waiting.pop(0)
            try:
                results, seconds = self._together(pixels, group, target, refused, timed)
            except (CaptureError, ModelError) as error:
                if refused is None:
                    raise
                if len(group) > 1:  # no look serves them all, so each gets its own, or its own reason
                    waiting[:0] = [[one] for one in group]
                else:
                    refused[group[0].name] = str(error)
                continue
            found |= results
            if len(group) == 1:
                group[0].seconds += seconds
            else:
                shared += seconds
        return found, shared

    def _together(
        self, pixels: Tensor, group: Sequence[Asked], target: Any, refused: dict[str, str] | None, timed: bool
    ) -> tuple[dict[str, Result], float]:
        """What methods that share a look say, and the seconds of the look."""
        images, seconds = len(pixels), 0.0
        classes = any(one.method.class_specific for one in group)
        wanted = spread("top1" if target is None else target, images) if classes else None
        parts: list[dict[str, Result]] = []
        # Whatever mode the caller is in: inside torch.inference_mode() nothing could be differentiated, and outside
        # of it what is never differentiated takes longer.
        needs = all_needs(group)
        greed = needs, pixels.shape[1:]
        subject = dataclasses.replace(self.subject(pixels[:1])[0], pieces=self._pieces[greed])
        last, first = not DIFFERENTIATED & needs and not subject.anatomy.remembers, 0
        with torch.inference_mode(last), torch.no_grad():
            while first < images:
                some = slice(first, first + subject.together)
                try:
                    look = SharedLook(subject, self._ready(pixels[some]), group, refused, timed=timed)
                    columns = self._columns(wanted[some], look.logits) if wanted else []
                    found = look.results(columns, images - first)
                    # To where the caller's pixels are: maps of many images would fill an accelerator.
                    parts.append({name: result.to(pixels.device) for name, result in found.items()})
                except torch.cuda.OutOfMemoryError as error:
                    if subject.together == subject.rows() == 1:
                        names = ", ".join(one.name for one in group)
                        raise ModelError(f"{names}: {exhausted(pixels)}") from error
                    self._pieces[greed] *= 2
                    subject, look = dataclasses.replace(subject, pieces=self._pieces[greed]), None
                else:
                    seconds, first = seconds + look.seconds, some.stop
        return {name: Result.joined([part[name] for part in parts]) for name in parts[-1]}, seconds

    def subject(self, pixels: Tensor) -> tuple[Subject, Tensor]:
        """The model at the size of (B, C, H, W) pixels, and the pixels as it takes them: its device and precision."""
        channels, height, width = pixels.shape[1:]
        anatomy = self.family.anatomy(self.model, (channels, height, width))
        return Subject(self.model, self.family, anatomy, black=self.preprocessing.black), self._ready(pixels)

    def _ready(self, pixels: Tensor) -> Tensor:
        reference = next((p for p in self.model.parameters() if p.is_floating_point()), pixels)
        return pixels.to(reference.device, reference.dtype, copy=pixels.is_inference())

    @property
    def headless(self) -> str:
        return f"{self.family.name(self.model)} has no classifier head: give a function of its output as target"

    def _columns(self, wanted: list[list[Any]], logits: Tensor) -> list[list[Target]]:
        if self.family.classes(self.model) == 0 and not all(callable(one) for row in wanted for one in row):
            raise TargetError(self.headless)
        return resolve(wanted, logits, self.labels)
