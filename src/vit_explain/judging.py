"""Maps of a method with all that metrics may ask about them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from .cases import Case
from .errors import OptionError
from .explainer import Explainer
from .inquiry import finite
from .randomised import Randomised
from .registry import OTHERS, Method
from .removal import Pictures
from .sharing import clock
from .surroundings import callers
from .types import Attribution


class Judge:
    """Makes cases of one model's maps; with a copy of the model that has random weights, once that is asked for."""

    def __init__(self, explainer: Explainer, seed: int) -> None:
        self.explainer, self.seed = explainer, seed
        self._copy: tuple[Randomised, Explainer] | None = None

    def pictures(self, pixels: Tensor) -> Pictures:
        """Pixels (B, C, H, W) as the model takes them."""
        subject, ready = self.explainer.subject(pixels)
        return Pictures(subject, ready, self.seed)

    def whole(self, pictures: Pictures) -> Tensor:
        """Scores (B, classes) float32 of the whole pictures."""
        return pictures.subject.scores(pictures.pixels)

    def case(
        self,
        method: Method,
        options: dict[str, Any],
        pictures: Pictures,
        whole: Tensor,
        targets: Tensor,
        *,
        labels: Tensor | None = None,
        truth: Tensor | None = None,
        one: bool = False,
    ) -> Case:
        """The method's maps of the pictures for these classes (B,), and what it said beside them.

        ``one``: whether all pictures are one and the same, which is then looked at once for all its classes.
        """

        def explained(explainer: Explainer, pixels: Tensor, classes: Tensor, at_once: bool = False) -> Attribution:
            if method.family == OTHERS:
                with torch.enable_grad(), callers():
                    # Clones, which its code may change.
                    found = method.run(explainer.plain, pixels.clone(), classes.to(pixels.device, copy=True))
                return Attribution(_checked(method, found, pixels, pictures))
            wanted = classes.tolist() if method.class_specific else None
            result = explainer.result(pixels[:1] if at_once else pixels, wanted, method.name, **options)
            rows = [0] * len(classes) if at_once and wanted is None else list(range(len(classes)))
            facts = {name: values[rows] for name, values in result.facts.items()}
            return Attribution(result.maps[rows].to(pixels.device), facts, [result.warnings[row] for row in rows])

        def maps(pixels: Tensor, classes: Tensor) -> Tensor:
            return explained(self.explainer, pixels, classes).map

        @functools.cache
        def rerandomised(share: float) -> Tensor:
            randomised, explainer = self._random(pictures.pixels)
            with randomised.last(share):
                return explained(explainer, pictures.pixels, targets, one).map

        device = pictures.pixels.device
        began = clock(device)
        found = explained(self.explainer, pictures.pixels, targets, one)
        return Case(
            found.map,
            targets,
            pictures,
            whole,
            labels,
            truth,
            found.facts,
            found.warnings or [[] for _ in targets],
            clock(device) - began,
            maps,
            rerandomised,
        )

    def _random(self, pixels: Tensor) -> tuple[Randomised, Explainer]:
        """The copy, and who explains it; ``pixels``: of the first picture that it is made for."""
        if self._copy is None:

            def explained(model: nn.Module) -> Explainer:
                return Explainer(model, preprocessing=self.explainer.preprocessing)

            def scores(model: nn.Module) -> Tensor:
                return explained(model).subject(pixels[:1])[0].respond(pixels[:1])[1]

            randomised = Randomised(self.explainer.plain, self.seed, scores)
            self._copy = randomised, explained(randomised.model)
        return self._copy


def _checked(method: Method, maps: Any, pixels: Tensor, pictures: Pictures) -> Tensor:
    """Maps that another's code made; an error where they are not a number a patch or a pixel."""
    sizes = pictures.anatomy.grid, tuple(pixels.shape[2:])
    if not isinstance(maps, Tensor) or len(maps) != len(pixels) or tuple(maps.shape[1:]) not in sizes:
        found = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        wanted = " or ".join(str((len(pixels), *size)) for size in sizes)
        raise OptionError(f"{method.name} returned {found}, not a tensor of {wanted}")
    if not finite(maps):
        raise OptionError(f"{method.name} returned numbers that are not finite")
    return maps.detach().float().to(pixels.device)
