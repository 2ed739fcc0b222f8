"""What is explained: everything a caller may pass as ``target`` becomes one ``Target`` an image, here and only here."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import ContrastError, TargetError, VitExplainError, near, reason
from .labels import Names
from .surroundings import callers

MIXED = "functions, contrasts and classes cannot be mixed in one batch: explain them separately"
MOST_TOP = re.compile(r"top[-_ ]?([0-9]{1,9})")
NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Contrast:
    """Class ``positive`` rather than class ``negative``: the difference of their logits.

    Each is a class number or label, or "topN" for an image's N-th best class: ``Contrast("top1", "top2")`` asks why the
    best one rather than the next.
    """

    positive: int | str
    negative: int | str


@dataclass(frozen=True)
class Target:
    """One number of one image: a logit, a difference of two logits, or what a function makes of the model's output."""

    name: str
    index: int | None = None
    against: int | None = None
    function: Callable[[Any], Any] | None = None


def spread(target: Any, images: int) -> list[list[Any]]:
    """What a caller gave, as a list of targets for each image; every image gets the same number of them.

    ``target``: a class number or label, ``"top1"`` (``"topK"`` for the K best), a ``Contrast``, a function of the
    model's output that returns one number an image, a list with one of these an image or, for one image, of K; for
    several images with K targets each, a list of lists.

    A function gets the output for a lot of the images, not for all: on a processor 8, fewer the last time. What it does
    must not depend on which of them these are; for that, give a list with a function an image.
    """
    if isinstance(target, (np.ndarray, Tensor)):
        target = target.tolist()
    if not isinstance(target, (list, tuple)):
        return [[target]] * images
    if not target:
        raise TargetError("the list of targets is empty")
    if images == 1 and not isinstance(target[0], (list, tuple)):
        return [list(target)]
    if len(target) != images:
        raise TargetError(f"{len(target)} targets were given for {images} images: give one an image or a list of lists")
    return [list(entry) if isinstance(entry, (list, tuple)) else [entry] for entry in target]


def resolve(wanted: list[list[Any]], logits: Tensor, labels: Sequence[str] | None) -> list[list[Target]]:
    """``spread``'s lists as K columns of B: ``result[k][b]`` is what pass k explains of image b."""

    @functools.cache
    def best(most: int) -> list[list[int]]:  # of all images at once: each look at a device's numbers waits for it
        return logits.topk(most).indices.tolist()

    rows = [
        [target for one in entry for target in _expand(one, image, logits.shape[-1], best, labels)]
        for image, entry in enumerate(wanted)
    ]
    if len({len(row) for row in rows}) != 1:
        raise TargetError("every image needs the same number of targets")
    return [list(column) for column in zip(*rows, strict=True)]


def score(targets: Sequence[Target], logits: Tensor, output: Any) -> Tensor:
    """The numbers (B,) to explain, in the graph; ``logits`` (B, classes) is read from ``output`` by the family."""
    if any(target.function is not None for target in targets):
        return _returned(targets, output)
    rows = torch.arange(len(targets), device=logits.device)
    values = logits[rows, _numbers(targets, "index", logits)]
    if any(target.against is not None for target in targets):
        values = values - logits[rows, _numbers(targets, "against", logits)]
    return values.float()


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over (B, classes); a single score stands for itself, since its softmax would always be one."""
    return logits.float().softmax(-1) if logits.shape[-1] > 1 else logits.float()


def _returned(targets: Sequence[Target], output: Any) -> Tensor:
    """What each image's own function makes of it."""
    values: dict[int, Tensor] = {}
    for function in (target.function for target in targets):
        if function is None:
            raise TargetError(MIXED)
        if id(function) in values:
            continue
        found = _called(function, output)
        if not isinstance(found, Tensor) or found.shape != (len(targets),):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise TargetError(f"the target function must return one number an image, ({len(targets)},), not {shape}")
        values[id(function)] = found.float()
    places = {known: place for place, known in enumerate(values)}
    which = [places[id(target.function)] for target in targets]
    return torch.stack(list(values.values()))[which, range(len(targets))]


def _called(function: Callable[[Any], Any], output: Any) -> Any:
    try:
        with callers():
            return function(output)
    except (VitExplainError, torch.cuda.OutOfMemoryError):  # of the latter, fewer images are tried
        raise
    except Exception as error:
        raise TargetError(
            f"the target function {_name(function)} failed with {type(error).__name__}: {reason(error)} (it gets the "
            "output for a lot of the images, not for all of them; where images differ, give a function for each)"
        ) from error


def class_number(given: int | str, classes: int, labels: Sequence[str] | None) -> int:
    """Number of a class given by number, by label, or by one of a label's comma-separated synonyms."""
    if isinstance(given, str) and not NUMBER.fullmatch(given.strip()):
        return _label_number(given, labels)
    number = int(given)
    if not 0 <= number < classes:
        named = f" ({', '.join(labels)})" if labels is not None and len(labels) <= 12 else ""
        raise TargetError(f"class {number} does not exist: the model has {classes} classes, 0 to {classes - 1}{named}")
    return number


def label_of(number: int, labels: Sequence[str] | None) -> str:
    return labels[number] if labels is not None else f"class {number}"


def _name(function: Callable[[Any], Any]) -> str:
    return getattr(function, "__name__", "function")


def _expand(
    target: Any, image: int, classes: int, best: Callable[[int], list[list[int]]], labels: Sequence[str] | None
) -> list[Target]:
    if callable(target):
        return [Target(_name(target), function=target)]
    if isinstance(target, Contrast):
        for_, against = (
            best(top)[image][-1] if (top := _top(side, classes)) else class_number(side, classes, labels)
            for side in (target.positive, target.negative)
        )
        if for_ == against:
            raise ContrastError(f"a contrast needs two classes, not {label_of(for_, labels)} twice")
        return [Target(f"{label_of(for_, labels)} rather than {label_of(against, labels)}", for_, against)]
    if top := _top(target, classes):
        return [Target(label_of(number, labels), number) for number in best(top)[image]]
    if isinstance(target, bool) or not isinstance(target, (int, str, np.integer)):
        raise TargetError(
            f"a target is a class number, a label, 'top1', a Contrast, a function or a list of them, not {target!r}"
        )
    number = class_number(target if isinstance(target, str) else int(target), classes, labels)
    return [Target(label_of(number, labels), number)]


def _top(target: Any, classes: int) -> int | None:
    """N of "topN"; None for what is something else."""
    found = MOST_TOP.fullmatch(target.strip().lower()) if isinstance(target, str) else None
    if found is None:
        return None
    if not 1 <= int(found.group(1)) <= classes:
        raise TargetError(f"{target!r}: the model has {classes} classes")
    return int(found.group(1))


def _label_number(given: str, labels: Sequence[str] | None) -> int:
    if labels is None:
        raise TargetError(
            f"{given!r}: the class names of this model are not known; give a number, or the names (labels)"
        )
    found = Names(labels).find(given)
    if len(found) == 1:
        return found[0]
    if found:
        raise TargetError(f"{given!r} names {len(found)} classes: {', '.join(map(str, found))}; give the number")
    raise TargetError(f"there is no class {given!r}; {near(given, labels)}")


def _numbers(targets: Sequence[Target], which: str, logits: Tensor) -> Tensor:
    numbers = [getattr(target, which) for target in targets]
    if None in numbers:
        raise TargetError(MIXED)
    return torch.tensor(numbers, device=logits.device)
