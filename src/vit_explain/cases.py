"""What a metric sees: one method's maps of some images, and what may be asked about them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from .errors import OptionError
from .likeness import unit
from .removal import Filling, Level, Part, Pictures, at_level, ranked
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
    warnings: list[list[str]] = field(default_factory=list)  # of each map, what its reader must know
    seconds: float = 0.0  # for all the maps
    explain: Callable[[Tensor, Tensor], Tensor] | None = None
    rerandomised: Callable[[float], Tensor] | None = None
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

    @cached_property
    def probability_faded(self) -> Tensor:
        """(B,) the class's probability in ``x ⊙ m``, m the map brought to [0, 1] and resized bilinearly to the pixels.

        Of a map that is the same everywhere nothing is more relevant than the rest: m is one.
        """
        pixels, (height, width) = self.pictures.pixels, self.pictures.anatomy.covers
        mask = unit(self.at("pixel").to(pixels.device), 1.0).view(-1, 1, height, width)
        faded = pixels.clone()
        faded[..., :height, :width] *= mask.to(faded.dtype)
        return self.of_target(probabilities(self.pictures.subject.scores(faded)))

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
            self._ranks[level] = ranked(self.at(level), self.pictures.generators())
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
        if part.level == "pixel" and part.fill == "drop":
            raise OptionError("level=pixel: pixels are no tokens that could be dropped; give another fill")
        # One rule for all metrics, so that their answers are the same ones: whether nothing may be left.
        return self.pictures.filling("mean" if part.fill == "auto" and part.level == "pixel" else part.fill)


def _rounded(number: Fraction) -> int:
    """To the nearest whole number, halves upwards."""
    return math.floor(number + Fraction(1, 2))
