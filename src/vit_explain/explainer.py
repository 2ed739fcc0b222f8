"""``Explainer``: images in, explanations out. Arguments of many kinds are resolved here, at the edge."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import methods as _registers_them  # noqa: F401
from ._version import __version__
from .comparison import Comparison
from .errors import ModelError, OptionError, TargetError
from .explanation import Explanation
from .family import family_of, unwrap
from .image import Preprocessing
from .inputs import Inputs, checked_pixels, read
from .inquiry import Subject, Tally
from .layer import Layer
from .leaderboard import best
from .loading import DEFAULT_MODEL, load_model
from .photos import DEFAULT_MAX_PIXELS
from .prompts import Prompted
from .registry import BEST, METHODS, Method, choose_method, choose_methods, find
from .running import Runner
from .sharing import Asked, Result, clock
from .surroundings import own
from .targets import Target
from .types import Anatomy

RGB = 3


class Explainer:
    """Explains one model, which it never changes: flags, gradients and hooks are as they were, also after an error.

    ``model``: a ``torch.nn.Module`` of a known family, or a name for ``load_model`` (then ``checkpoint`` and
    ``device`` apply). ``labels``: class names, where the model does not carry its own. ``preprocessing``: how pictures
    become pixels, by default as the model's own configuration says. ``texts``: of a model that compares pictures with
    texts, the prompts that stand for its classes; ``tokenizer``: see ``prompts.Prompted``.
    """

    def __init__(
        self,
        model: nn.Module | str = DEFAULT_MODEL,
        *,
        checkpoint: str | Path | None = None,
        labels: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        preprocessing: Preprocessing | None = None,
        texts: Sequence[str] | None = None,
        tokenizer: Callable[..., Any] | None = None,
    ) -> None:
        if isinstance(model, str):
            model = load_model(model, checkpoint=checkpoint, device=device or "cpu")
        elif checkpoint is not None or device is not None:
            raise ModelError("checkpoint and device go with a model's name; load and move your own model yourself")
        if texts is not None:
            model = Prompted(model, texts, tokenizer)
        self.family = family_of(unwrap(model) if isinstance(model, nn.Module) else model)
        self.model = model
        self.checkpoint = None if checkpoint is None else str(checkpoint)
        self.plain = unwrap(model)
        self.model_name = self.family.name(self.plain)
        self._runner = Runner(self.plain, self.family, preprocessing, labels)

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures become pixels."""
        return self._runner.preprocessing

    @property
    def labels(self) -> list[str] | None:
        """Class names, where they are known."""
        return self._runner.labels

    @own()
    def explain(
        self,
        images: Any,
        method: str | None = None,
        target: Any = None,
        *,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Explanation:
        """Explain one image or several.

        ``images``: a path, PIL image or uint8 array (H, W, 3), a list of these, or an already preprocessed float
        tensor (C, H, W) or (B, C, H, W). ``method``: by default attention rollout without a target, and gradient
        rollout with one; "best": see ``best``. ``target``: a class number or label, "top1",
        a ``Contrast``, a function of the model's output that returns one number an image, or a list of these, see
        ``targets.spread``; class-specific methods explain "top1" without one. A function is called for a lot of the
        images at a time, on a processor 8. ``progress``: called as ``progress(done, total)`` by methods that take many
        forwards; what it raises ends them.
        """
        began = time.perf_counter()
        asked = self._asked(method, target, options, progress, images)
        prepared = read(images, self.preprocessing, max_pixels)
        results, _ = self._runner.run(prepared.pixels, [asked], target)
        result = results[asked.name]
        return self._explanation(asked, result, prepared, clock(result.maps.device) - began)

    @own()
    def compare(
        self,
        images: Any,
        methods: str | Sequence[str] = "fast",
        target: Any = None,
        *,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Comparison:
        """Explain images by several methods, with one look at them for all methods that can share it.

        Maps are those of ``explain`` one by one, up to rounding. ``images``, ``max_pixels``: as there. ``methods``: a
        list of names; "fast" stands for all that take one forward and at most one backward, "all" for all.
        ``target``: for the methods that depend on a class. ``options``: keywords of each method, by its name.
        ``progress``: called as ``progress(method, done, total)`` with 0 done when a method begins, and then as in
        ``explain``. Methods that cannot explain this model are left out, their reasons in ``refused``; where none can,
        the first reason is raised.
        """
        chosen = choose_methods([methods] if isinstance(methods, str) else methods)
        options = options or {}
        for name in options:
            if name not in [method.name for method in chosen]:
                raise OptionError(f"options are given for {name!r}, which is not among the methods to compare")
        if target is not None and not any(method.class_specific for method in chosen):
            raise TargetError("none of these methods depends on a class: leave the target out or add another method")
        asked = [
            Asked(
                method,
                method.settings(dict(options.get(method.name, {}))),
                None if progress is None else Tally(partial(progress, method.name)),
                None if progress is None else partial(progress, method.name, 0, method.forwards),
            )
            for method in chosen
        ]
        prepared = read(images, self.preprocessing, max_pixels)
        refused: dict[str, str] = {}
        if target is None and self.family.classes(self.plain) == 0:
            refused = {method.name: self._runner.headless for method in chosen if method.class_specific}
            asked = [one for one in asked if one.name not in refused]
        results, look_seconds = self._runner.run(prepared.pixels, asked, target, refused, timed=True)
        if not results:
            raise ModelError(next(iter(refused.values())))
        anatomy = self.subject(prepared.pixels[:1])[0].anatomy
        return Comparison(
            {
                one.name: self._explanation(one, results[one.name], prepared, one.seconds)
                for one in asked
                if one.name in results
            },
            refused,
            look_seconds,
            anatomy.grid,
            anatomy.covers,
        )

    def attribute(
        self,
        inputs: Tensor,
        target: Any = None,
        method: str | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Tensor:
        """captum's form: preprocessed (B, C, H, W) in, raw relevance (R, h, w) float32 out, on the inputs' device.

        Rows are images, or with K targets an image, the K rows of the first image, then those of the second.
        """
        maps = self.result(inputs, target, method, progress=progress, **options).maps
        # A tensor made in inference mode could not be part of a caller's own graph.
        return maps.clone() if maps.is_inference() else maps

    @own()
    def result(
        self,
        inputs: Tensor,
        target: Any = None,
        method: str | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Result:
        """What ``attribute`` returns, with all that the method says beside it."""
        asked = self._asked(method, target, options, progress, inputs)
        results, _ = self._runner.run(checked_pixels(inputs), [asked], target)
        return results[asked.name]

    @own()
    def calls(self, inputs: Tensor) -> tuple[Anatomy, list[Layer]]:
        """What the family says of preprocessed (B, C, H, W) pixels, and the attention calls that one look sees.

        None are looked for in a model whose attention no method reads.
        """
        subject, pixels = self.subject(checked_pixels(inputs))
        plan = subject.anatomy.plan
        if plan is not None and not plan.places:
            return subject.anatomy, []
        trace, _ = subject.look(pixels, frozenset({"attention"}))
        return subject.anatomy, trace.layers if trace.pool is None else [*trace.layers, trace.pool]

    @own()
    def best(self, target: Any = None, inputs: Any = None) -> Method:
        """The method at the head of the leaderboard, of those of one forward and at most one backward that can explain
        this model. ``inputs``: the preprocessed tensor, where that is to be explained and no photo.
        """
        pixels = inputs if isinstance(inputs, Tensor) else torch.zeros(1, RGB, *self.preprocessing.size)
        anatomy = self.subject(checked_pixels(pixels)[:1])[0].anatomy
        return best(anatomy, classes=target is not None or self.family.classes(self.plain) > 0)

    def subject(self, pixels: Tensor) -> tuple[Subject, Tensor]:
        """See ``Runner.subject``."""
        return self._runner.subject(pixels)

    def _asked(
        self,
        method: str | None,
        target: Any,
        options: dict[str, Any],
        progress: Callable[[int, int], None] | None,
        inputs: Any,
    ) -> Asked:
        chosen = self.best(target, inputs) if method == BEST else find(choose_method(method, target))
        if target is not None and not chosen.class_specific:
            raise TargetError(
                f"{chosen.name} does not depend on a class: leave the target out or choose another method"
            )
        return Asked(chosen, chosen.settings(options), None if progress is None else Tally(progress))

    def _explanation(self, asked: Asked, result: Result, prepared: Inputs, seconds: float) -> Explanation:
        return Explanation(
            relevance=result.maps.cpu().numpy(),
            image_of=result.image_of,
            targets=[one.name if one else "" for one in result.targets],
            target_numbers=[one.index if one else None for one in result.targets],
            logits=result.logits.cpu().numpy(),
            labels=self.labels,
            method=asked.name,
            signed=asked.method.signed_with(asked.settings, of_class=all(map(_is_class, result.targets))),
            options=asked.settings,
            model=self.model_name,
            photos=prepared.photos,
            # The grid may cover less than the input (sizes that patches do not divide), or its padding.
            geometries=[dataclasses.replace(one, input=result.covers) for one in prepared.geometries],
            sources=prepared.sources,
            facts={name: values.numpy() for name, values in result.facts.items()},
            warnings=result.warnings,
            seconds=seconds,
            versions=_versions(),
            checkpoint=self.checkpoint,
        )


def explain(
    model: nn.Module | str, images: Any, method: str | None = None, target: Any = None, **options: Any
) -> Explanation:
    """``Explainer(model).explain(images, method, target, **options)``: one line for one picture."""
    return Explainer(model).explain(images, method, target, **options)


def list_methods() -> list[Method]:
    """Every registered method, by name."""
    return [METHODS[name] for name in sorted(METHODS)]


def _versions() -> dict[str, str]:
    return {"vit_explain": __version__, "torch": torch.__version__, "python": platform.python_version()}


def _is_class(target: Target | None) -> bool:
    return target is None or (target.against is None and target.function is None)
