"""One look for all methods that can share it. Each of them sees of it what it would have seen alone, and no more."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .artifacts import warned
from .errors import ModelError, TargetError, VitExplainError
from .inquiry import Columns, ModelInquiry, Subject, Tally
from .registry import Method
from .targets import Target
from .types import Anatomy, Attribution, Trace

DIFFERENTIATED = {"gradient", "graph", "pixels", "probe"}  # needs that autograd, or a later look, serves


@dataclass(eq=False)
class Asked:
    """A method with its options, where it says how far it is, and how long it took beside the look it shares."""

    method: Method
    settings: dict[str, Any]
    tally: Tally | None = None
    start: Callable[[], None] | None = None  # called once, when the method begins
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def needs(self) -> frozenset[str]:
        return self.method.needed(self.settings)

    def begin(self, calls: float) -> None:
        if self.start is not None:
            self.start()
            self.start = None
        if self.tally is not None:
            self.tally.begin(calls)


def groups(asked: Sequence[Asked]) -> list[list[Asked]]:
    """Who shares a look: all methods in whose look gradients flow as usual. Those with rules of their own are alone."""
    shared = [one for one in asked if one.method.within is None]
    alone = [[one] for one in asked if one.method.within is not None]
    return [shared, *alone] if shared else alone


def all_needs(asked: Iterable[Asked]) -> frozenset[str]:
    """What any of the methods needs."""
    return frozenset(need for one in asked for need in one.needs)


@dataclass(eq=False)
class Result:
    """Maps (R, h, w) and what each row of them is about; image-major where an image has several targets."""

    maps: Tensor
    logits: Tensor  # (images, classes)
    targets: list[Target | None]
    covers: tuple[int, int]
    facts: dict[str, Tensor]
    warnings: list[list[str]]

    @property
    def image_of(self) -> list[int]:
        each = len(self.targets) // len(self.logits)
        return [row // each for row in range(len(self.targets))]

    def to(self, device: torch.device) -> Result:
        """The same on a device."""
        return dataclasses.replace(self, maps=self.maps.to(device), logits=self.logits.to(device))

    @classmethod
    def joined(cls, parts: Sequence[Result]) -> Result:
        """Of several lots of images, in their order."""
        if len({len(part.targets) / len(part.logits) for part in parts}) != 1:
            raise TargetError("every image needs the same number of targets")
        return cls(
            maps=torch.cat([part.maps for part in parts]),
            logits=torch.cat([part.logits for part in parts]),
            targets=[one for part in parts for one in part.targets],
            covers=parts[0].covers,
            facts={name: torch.cat([part.facts[name] for part in parts]) for name in parts[0].facts},
            warnings=[one for part in parts for one in part.warnings],
        )


class SharedLook:
    """One look at B images for the methods of one of ``groups``.

    ``refused``: where the reasons of methods that cannot explain this model or target are gathered by name, so that
    the others go on; without it they are raised. ``timed``: whether somebody will read how long each took, for which a
    device must be waited for again and again.
    """

    def __init__(
        self,
        subject: Subject,
        pixels: Tensor,
        asked: Sequence[Asked],
        refused: dict[str, str] | None = None,
        *,
        timed: bool = False,
    ) -> None:
        self._subject, self._refused, self._timed = subject, refused, timed
        # Those of many forwards come last, with the least kept meanwhile.
        self._asked = sorted(asked, key=lambda one: ("probe" in one.needs, -len(one.needs)))
        self._images, self._device = len(pixels), pixels.device
        self._found: dict[str, list[Attribution]] = {one.name: [] for one in asked}
        self._known: dict[str, dict[Any, Tensor]] = {}  # answers that serve a method for several targets
        for one in asked:
            if (reason := layout_refusal(one.method, one.needs, subject.anatomy)) is not None:
                raise ModelError(reason)
        began = self._clock()
        first = asked[0]
        within = first.method.within(**first.settings) if first.method.within else None
        shortened = _shortened(subject.anatomy, asked)
        self._trace, self._output = subject.look(pixels, all_needs(asked), within, shortened=shortened)
        self.logits, self.size = self._trace.logits, (int(pixels.shape[2]), int(pixels.shape[3]))
        self.seconds = self._clock() - began  # of the look itself and of gradients, which all share

    def _clock(self) -> float:
        return clock(self._device) if self._timed else 0.0

    def results(self, columns: Columns, left: int) -> dict[str, Result]:
        """What each method says, for each column of targets, or once where it does not depend on a class.

        ``left``: images that are still to be explained, these included. What a look keeps is large, the autograd graph
        above all: everything is let go of as soon as the last method that needs it is done, so this works once.
        """
        graph = [one for one in self._asked if "graph" in one.needs and "gradient" not in one.needs]
        gradient = [one for one in self._asked if "gradient" in one.needs]
        rest = [one for one in self._asked if not one.needs & {"graph", "gradient"}]
        each = left / self._images
        answers = []
        for number, column in enumerate(columns):
            calls = each * len(columns) - number
            if graph:
                trace = self._about(all_needs(graph), column, keep_graph=True)
                for one in graph:
                    self._run(one, trace, columns, number, calls)
                del trace
            answers.append(self._differentiated(gradient, rest, columns, number, calls))
        if not columns:
            self._leave_graph(rest)
        for at, one in enumerate(rest):
            if one.method.class_specific:
                for number, y in enumerate(answers):
                    trace = dataclasses.replace(self._trace, y=y)
                    self._run(one, trace, columns, number, each * len(columns) - number)
                    del trace
            else:
                self._run(one, self._trace, (), 0, each)
            self._trace = narrowed(self._trace, all_needs(rest[at + 1 :]))
        return {
            one.name: self._result(one, columns if one.method.class_specific else ())
            for one in self._asked
            if one.name not in (self._refused or ())
        }

    def _differentiated(
        self, gradient: Sequence[Asked], rest: Sequence[Asked], columns: Columns, number: int, calls: float
    ) -> Tensor | None:
        """Run the methods that need gradients of one column of targets; returns y (B,)."""
        last = number == len(columns) - 1
        trace = self._about(all_needs(gradient), columns[number], keep_graph=not last)
        if last:
            self._leave_graph(rest)
        for at, one in enumerate(gradient):
            self._run(one, trace, columns, number, calls)
            trace = narrowed(trace, all_needs(gradient[at + 1 :]))
        return trace.y

    def _about(self, needs: frozenset[str], column: Sequence[Target], *, keep_graph: bool) -> Trace:
        began = self._clock()
        about = self._subject.about(narrowed(self._trace, needs), self._output, column, needs, keep_graph=keep_graph)
        self.seconds += self._clock() - began
        return about

    def _leave_graph(self, rest: Sequence[Asked]) -> None:
        """Keep only what methods without gradients need, and nothing that holds the graph."""
        trace = narrowed(self._trace, all_needs(rest))
        self._output = None
        self._trace = dataclasses.replace(
            trace,
            layers=[dataclasses.replace(layer, out=None) for layer in trace.layers],
            pool=None if trace.pool is None else dataclasses.replace(trace.pool, out=None),
            tokens=[tokens.detach() for tokens in trace.tokens],
            features=None if trace.features is None else trace.features.detach(),
            pixels=trace.pixels.detach(),
            biases=None,
        )

    def _run(self, one: Asked, trace: Trace, columns: Columns, number: int, calls: float) -> None:
        """Run one method about one of the columns; ``calls``: how many runs like this one there are from here on, this
        one included."""
        if one.name in (self._refused or ()):
            return
        one.begin(calls)
        began = self._clock()
        subject = dataclasses.replace(self._subject, report=one.tally)
        known = self._known.setdefault(one.name, {})
        inquiry = ModelInquiry(subject, self._images, tuple(map(tuple, columns)), number, known)
        own = dataclasses.replace(narrowed(trace, one.needs), inquiry=inquiry)
        try:
            found = one.method.run(own, **one.settings)
        except VitExplainError as error:
            if self._refused is None:
                raise
            self._refused[one.name] = str(error)
        else:
            self._found[one.name].append(warned(own, found if isinstance(found, Attribution) else Attribution(found)))
        one.seconds += self._clock() - began
        if number >= len(columns) - 1:
            del self._known[one.name]

    def _result(self, one: Asked, columns: Columns) -> Result:
        found, anatomy = self._found[one.name], self._subject.anatomy
        maps = torch.stack([each.map.detach().float() for each in found], 1).flatten(0, 1)
        size = (int(maps.shape[1]), int(maps.shape[2]))
        covers = {self.size: self.size, anatomy.grid: anatomy.covers}
        if anatomy.plan is not None:
            covers.setdefault(anatomy.plan.grid, anatomy.plan.covers)
        if size not in covers:
            raise ModelError(f"{one.name} returned maps of {size}, neither the patch grid nor the pixels")
        # What a model without a head returns are features, which nobody should read as scores of classes.
        scores = self.logits if self._subject.family.classes(self._subject.model) else self.logits[:, :0]
        rows = [(image, number) for image in range(self._images) for number in range(len(found))]
        return Result(
            maps,
            scores,
            targets=[columns[number][image] if columns else None for image, number in rows],
            covers=covers[size],
            facts={
                name: torch.stack([each.facts[name].float() for each in found], 1).flatten().cpu()
                for name in found[0].facts
            },
            warnings=[found[number].warnings[image] if found[number].warnings else [] for image, number in rows],
        )


def narrowed(trace: Trace, needs: frozenset[str]) -> Trace:
    """The trace with what these needs stand for, see ``registry.NEEDS``, and nothing else."""
    attention, tokens, features = "attention" in needs, "tokens" in needs, "features" in needs
    return dataclasses.replace(
        trace,
        layers=trace.layers if attention else [],
        pool=trace.pool if attention else None,
        tokens=trace.tokens if tokens else [],
        token_gradients=trace.token_gradients if tokens else [],
        attended=trace.attended if "attended" in needs else [],
        features=trace.features if features else None,
        feature_gradient=trace.feature_gradient if features else None,
        pixels=trace.pixels if "pixels" in needs else trace.pixels.detach(),
        pixel_gradient=trace.pixel_gradient if "pixels" in needs else None,
        biases=trace.biases if "biases" in needs else None,
        norms=trace.norms if needs else None,
    )


def layout_refusal(method: Method, needs: frozenset[str], anatomy: Anatomy) -> str | None:
    """Why a method that takes attention for a matrix from every token to every token cannot explain what is something
    else; None where it can."""
    plan = anatomy.plan
    if plan is None:
        return None
    others = f"a gradient{', class activation map' if anatomy.features else ''} or perturbation method"
    if "features" in needs and not anatomy.features:
        return f"{plan.reason}, so {method.name} finds no vector a patch; use {others} instead"
    if method.explains("in places" if plan.places else "unread", needs):
        return None
    if method.any_layout:
        return f"{plan.reason}, so {method.name} has no attention between tokens to read; use {others}"
    also = "rollout, gradient_rollout, gae or attention, or " if plan.places else ""
    return f"{plan.reason}, which {method.name} is not defined for; use {also}{others}"


def _shortened(anatomy: Anatomy, asked: Iterable[Asked]) -> tuple[int, int] | None:
    """(number of the last block, queries to keep of it), where all that look at its attention need only those."""
    read = anatomy.readout
    if anatomy.plan is not None or not read.tokens or read.patches or read.attention:
        return None
    looking = [one for one in asked if "attention" in one.needs]
    suffice = all(one.method.read_rows_suffice(**one.settings) for one in looking)
    return (len(anatomy.blocks) - 1, max(read.tokens) + 1) if suffice else None


def clock(device: torch.device) -> float:
    """Seconds, read when the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
