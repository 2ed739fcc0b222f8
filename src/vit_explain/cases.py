"""What a metric sees: one method's maps of some images, and what may be asked about them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from .removal import Filling, Level, Part, Pictures, at_level, ranked
from .seeds import own_generator
from .targets import probabilities

# (most, level, filling, how many stay) -> (B, classes)
Known = dict[tuple[bool, Level, Filling, int], Tensor]


@dataclass(eq=False)
class Case:
    """The maps of one method for B images, one class each.

    ``explain``: the maps (B, h, w) of the same method for other pixels (B, C, H, W) and classes (B,). ``rerandomised``:
    the maps of the same method for the same images of a model whose last ``share`` of the layers was drawn anew.
    """

    maps: Tensor  # (B, h, w), raw
    targets: Tensor  # (B,), the classes explained
    pictures: Pictures
    whole: Tensor  # (B, classes), scores of the whole images
    labels: Tensor | None = None  # (B,), the true classes
    truth: Tensor | None = None  # (B, H, W) booleans at the pixels that patches cover: where the object is
    facts: dict[str, Tensor] = field(default_factory=dict)  # (B,) each, what the method says of its maps
    explain: Callable[[Tensor, Tensor], Tensor] | None = None
    rerandomised: Callable[[float], Tensor] | None = None
    _drawn: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _known: Known = field(default_factory=dict)
    _ranks: dict[Level, Tensor] = field(default_factory=dict)

    def prepare(self, parts: Sequence[Part]) -> None:
        """Ask for all these answers together."""
        wanted: dict[tuple[Level, Filling], dict[tuple[bool, int], None]] = defaultdict(dict)
        for part in parts:
            level, fill = part.level, self._filling(part)
            for k in self._counts(part):
                if (part.most, level, fill, k) not in self._known:
                    wanted[level, fill][part.most, k] = None
        for (level, fill), asked in wanted.items():
            scores = self.pictures.answers(self.ranks(level), list(asked), fill)
            for column, (most, k) in enumerate(asked):
                self._known[most, level, fill, k] = scores[:, column]

    def scores(self, part: Part) -> Tensor:
        """(B, shares, classes) of what is left."""
        self.prepare([part])
        fill = self._filling(part)
        return torch.stack([self._known[part.most, part.level, fill, k] for k in self._counts(part)], 1)

    def probability(self, part: Part) -> Tensor:
        """(B, shares) of the class explained."""
        return self.of_target(probabilities(self.scores(part)))

    def without(self, removed: Tensor, fill: Filling) -> Tensor:
        """Scores (B, R, classes) of the images without these patches, (B, R, n) booleans."""
        rows = removed.shape[1]
        of = torch.arange(len(removed)).repeat_interleave(rows)
        return self.pictures.ask(~removed.flatten(0, 1), of, self.pictures.filling(fill)).unflatten(0, (-1, rows))

    def at_random(self, share: float, samples: int, fill: Filling) -> tuple[Tensor, Tensor]:
        """Sets of patches drawn at random, (B, samples, n) booleans of ``share`` of them each, and the scores (B,
        samples, classes) of the images without them. They are the images' own, the same for every method."""
        key = (share, samples, fill)
        if key not in self._drawn:
            number = self.number("patch")
            size = min(max(1, round(share * number)), number - 1)
            drawn = [
                torch.rand(samples, number, generator=own_generator(image, self.pictures.seed)).argsort(1) < size
                for image in self.pictures.pixels
            ]
            removed = torch.stack(drawn)
            self._drawn[key] = removed, self.without(removed, fill)
        return self._drawn[key]

    def of_target(self, scores: Tensor) -> Tensor:
        """(B, ..., classes) -> (B, ...), the column of each image's class."""
        index = self.targets.to(scores.device).view(-1, *[1] * (scores.ndim - 1)).expand(*scores.shape[:-1], 1)
        return scores.gather(-1, index)[..., 0]

    def at(self, level: Level) -> Tensor:
        """The maps as numbers (B, n) of patches or pixels, see ``removal.at_level``."""
        return at_level(self.maps, self.pictures.anatomy, level)

    def ranks(self, level: Level) -> Tensor:
        """(B, n), 0 for the most relevant patch or pixel, see ``removal.ranked``."""
        if level not in self._ranks:
            self._ranks[level] = ranked(self.at(level), self.pictures.pixels, self.pictures.seed)
        return self._ranks[level]

    def number(self, level: Level) -> int:
        """Patches, or pixels that patches cover."""
        height, width = self.pictures.anatomy.grid if level == "patch" else self.pictures.anatomy.covers
        return height * width

    def _counts(self, part: Part) -> list[int]:
        """How many patches or pixels stay, so that what is most relevant is always the rounded number of the two."""
        number = self.number(part.level)
        if part.most:
            return [_rounded(share * number) for share in part.shares]
        return [number - _rounded((1 - share) * number) for share in part.shares]

    def _filling(self, part: Part) -> Filling:
        # One rule for all metrics, so that their answers are the same ones: whether nothing may be left.
        return self.pictures.filling("mean" if part.fill == "auto" and part.level == "pixel" else part.fill)


def _rounded(number: Fraction) -> int:
    """To the nearest whole number, halves upwards."""
    return math.floor(number + Fraction(1, 2))
