"""Maps of a method with all that metrics may ask about them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .cases import Case
from .explainer import Explainer
from .explanation import Explanation
from .randomised import Randomised
from .registry import Method
from .removal import Pictures


class Judge:
    """Makes cases of one model's maps; with a copy of the model that has random weights, once that is asked for."""

    def __init__(self, explainer: Explainer, seed: int) -> None:
        self.explainer, self.seed = explainer, seed

    def pictures(self, pixels: Tensor) -> Pictures:
        """Pixels (B, C, H, W) as the model takes them."""
        subject, ready = self.explainer.subject(pixels)
        return Pictures(subject, ready, self.seed)

    def whole(self, pictures: Pictures) -> Tensor:
        """Scores (B, classes) float32 of the whole pictures."""
        with torch.no_grad():
            return pictures.subject.respond(pictures.pixels)[1].float()

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
    ) -> tuple[Case, Explanation]:
        """The method's maps of the pictures for these classes (B,), and what it said beside them."""

        def explained(explainer: Explainer, pixels: Tensor, classes: Tensor) -> Explanation:
            wanted = classes.tolist() if method.class_specific else None
            return explainer.explain(pixels, method.name, wanted, **options)

        def maps(explainer: Explainer, pixels: Tensor, classes: Tensor) -> Tensor:
            return torch.from_numpy(explained(explainer, pixels, classes).relevance).to(pixels.device)

        @functools.cache
        def rerandomised(share: float) -> Tensor:
            randomised, explainer = self._random
            with randomised.last(share):
                return maps(explainer, pictures.pixels, targets)

        found = explained(self.explainer, pictures.pixels, targets)
        case = Case(
            torch.from_numpy(found.relevance).to(pictures.pixels.device),
            targets,
            pictures,
            whole,
            labels,
            truth,
            {name: torch.from_numpy(values) for name, values in found.facts.items()},
            functools.partial(maps, self.explainer),
            rerandomised,
        )
        return case, found

    @functools.cached_property
    def _random(self) -> tuple[Randomised, Explainer]:
        randomised = Randomised(self.explainer.plain, self.seed)
        return randomised, Explainer(randomised.model, preprocessing=self.explainer.preprocessing)
