"""What the model answers when only the most, or the least, relevant part of each image is left.

All curves are made of these answers: what remains when the k most relevant of n patches are removed are the n - k least
relevant, and where as many are removed as inserted, inserting the most relevant first is removing the least relevant
first, read backwards. So each answer is asked for once, however many metrics read it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import OptionError
from .inquiry import Subject
from .perturb import FILLS, Fill, at_pixels, backdrop
from .seeds import own_seed
from .types import Anatomy

Level = Literal["patch", "pixel"]
Filling = Fill | Literal["noise"]  # how what is removed looks
FILLINGS = FILLS | {"noise": "painted over with Gaussian noise of the image's own mean and deviation"}


@dataclass(frozen=True)
class Part:
    """What stays of an image: the ``shares`` of it that are most relevant, or least; one answer each."""

    most: bool
    shares: tuple[Fraction, ...]
    level: Level = "patch"
    fill: Filling = "auto"


def steps(number: int, first: int = 0, last: int | None = None) -> tuple[Fraction, ...]:
    """Shares ``first/number`` to ``last/number``, by default up to one."""
    return tuple(Fraction(i, number) for i in range(first, (number if last is None else last) + 1))


@dataclass(frozen=True, eq=False)
class Pictures:
    """B images as the model takes them, and the model to ask about parts of them."""

    subject: Subject
    pixels: Tensor  # (B, C, H, W)
    seed: int = 0
    _drawn: dict[tuple[float, int, Filling], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def anatomy(self) -> Anatomy:
        return self.subject.anatomy

    def generators(self) -> list[torch.Generator]:
        """One an image, whose numbers are the image's own; they begin anew at each call."""
        return [torch.Generator().manual_seed(number) for number in self._seeds]

    @functools.cached_property
    def _seeds(self) -> list[int]:
        return [own_seed(image, self.seed) for image in self.pixels]

    def filling(self, fill: Filling) -> Filling:
        """How parts are really removed: "auto" drops patches as tokens where the model has an answer without any."""
        if fill != "auto":
            return fill
        return "mean" if self.anatomy.undroppable or self.anatomy.readout.needs_patches else "drop"

    def answers(self, ranks: Tensor, parts: Sequence[tuple[bool, int]], fill: Filling) -> Tensor:
        """Scores (B, parts, classes) float32 of what is left of each image: (True, k) stands for its k most relevant
        patches or pixels, (False, k) for its k least relevant ones. ``ranks`` (B, n): 0 is the most relevant."""
        number, images = ranks.shape[1], len(self.pixels)
        columns: dict[tuple[bool, int], list[int]] = {}
        for column, (most, k) in enumerate(parts):
            columns.setdefault((most or k in (0, number), k), []).append(column)  # all, or none: no matter of order
        of, part = torch.arange(images).repeat(len(columns)), torch.arange(len(columns)).repeat_interleave(images)
        most, stay = torch.tensor([*columns]).unbind(1)

        def left(rows: Tensor) -> Tensor:
            rank, number_left = ranks[of[rows]], stay[part[rows], None]
            return torch.where(most[part[rows], None].bool(), rank < number_left, rank >= number - number_left)

        scores = self._ask(left, stay[part], of, fill).unflatten(0, (len(columns), images))
        found = scores.new_empty(images, len(parts), scores.shape[-1])
        for same, own in zip(columns.values(), scores, strict=True):
            found[:, same] = own[:, None]
        return found

    def ask(self, keep: Tensor, of: Tensor, fill: Filling) -> Tensor:
        """Scores (R, classes) float32 of rows of which only ``keep`` (R, patches or pixels) is left; ``of`` (R,): which
        image each is of."""
        return self._ask(lambda rows: keep[rows], keep.sum(1), of, fill)

    def _ask(self, left: Callable[[Tensor], Tensor], counts: Tensor, of: Tensor, fill: Filling) -> Tensor:
        """The same, of ``left(rows)`` (rows, patches or pixels), which for all rows at once may be many, and how many
        stay, (R,). Rows that drop patches share a forward with those that keep as many."""
        device, dropped = self.pixels.device, fill == "drop"
        if dropped and self.anatomy.readout.needs_patches and not counts.all():
            raise OptionError("the head reads patches, so it has no answer without any; fill them instead of dropping")
        groups = counts if dropped else torch.zeros_like(counts)
        behind = [] if dropped else [self._backdrop(image, fill) for image in range(len(self.pixels))]
        found: Tensor | None = None
        for count in groups.unique():
            rows = (groups == count).nonzero()[:, 0]
            most = self.subject.rows(int(count) if dropped else None)
            for some in rows.tensor_split(-(-len(rows) // most)):
                images, places = of[some].unique(return_inverse=True)
                keep = left(some).to(device)
                if dropped:
                    scores = self.subject.scores(self.pixels[images], keep, places.to(device))
                else:
                    painted = torch.stack([behind[image] for image in images.tolist()])[places]
                    scores = self.subject.scores(torch.where(self._mask(keep), self.pixels[of[some]], painted))
                if found is None:
                    found = scores.new_empty(len(counts), scores.shape[-1])
                found[some] = scores
        assert found is not None
        return found

    def without(self, removed: Tensor, fill: Filling) -> Tensor:
        """Scores (B, R, classes) of the images without these patches, (B, R, n) booleans."""
        rows = removed.shape[1]
        of = torch.arange(len(removed)).repeat_interleave(rows)
        return self.ask(~removed.flatten(0, 1), of, self.filling(fill)).unflatten(0, (-1, rows))

    def at_random(self, share: float, samples: int, fill: Filling) -> tuple[Tensor, Tensor]:
        """Sets of patches drawn at random, (B, samples, n) booleans of ``share`` of them each, and the scores (B,
        samples, classes) of the images without them. They are the images' own, and are asked for once, whatever maps
        they are to judge."""
        key = (share, samples, fill)
        if key not in self._drawn:
            number = self.anatomy.grid[0] * self.anatomy.grid[1]
            size = min(max(1, round(share * number)), number - 1)
            drawn = [torch.rand(samples, number, generator=own).argsort(1) < size for own in self.generators()]
            removed = torch.stack(drawn)
            self._drawn[key] = removed, self.without(removed, fill).cpu()  # of all classes, for as long as the images
        return self._drawn[key]

    def _mask(self, keep: Tensor) -> Tensor:
        """(R, 1, H, W) booleans of patches, or of the pixels that patches cover; others stay as they are."""
        height, width = self.anatomy.covers
        if keep.shape[1] != height * width:
            return at_pixels(self, keep)
        below, right = self.pixels.shape[2] - height, self.pixels.shape[3] - width
        return F.pad(keep.view(-1, 1, height, width), (0, right, 0, below), value=True)

    def _backdrop(self, image: int, fill: Filling) -> Tensor:
        """(C, H, W) what an image is painted over with."""
        picture = self.pixels[image : image + 1]
        if fill != "noise":
            return backdrop(self.anatomy, self.subject.black, picture, fill).expand_as(picture)[0]
        mean, deviation = picture.mean((2, 3), keepdim=True), picture.std((2, 3), keepdim=True)
        noise = torch.randn(picture.shape, generator=self.generators()[image]).to(picture)
        return (mean + deviation * noise)[0]


def ranked(maps: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """(B, n) the rank of each number of maps (B, n) in its image, 0 for the largest.

    Equal numbers come in an order of chance that is the image's own: any other order would be a place on the picture.
    """
    values, number = maps.cpu(), maps.shape[1]
    shuffled = torch.stack([torch.randperm(number, generator=own) for own in generators])
    order = shuffled.gather(1, values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    return torch.empty_like(order).scatter_(1, order, torch.arange(number).expand_as(order))


def at_level(maps: Tensor, anatomy: Anatomy, level: Level) -> Tensor:
    """Maps (B, h, w) of patches, of a finer grid of tokens, or of pixels, as numbers (B, n) of patches, or of the
    pixels that these cover.

    To pixels they are resized bilinearly, as Chefer et al. (CVPR 2021) do; to patches they are averaged.
    """
    size = anatomy.grid if level == "patch" else anatomy.covers
    maps = covered(maps, anatomy)
    if tuple(maps.shape[1:]) == size:
        return maps.flatten(1)
    if level == "patch":
        return F.adaptive_avg_pool2d(maps[:, None], size).flatten(1)
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False).flatten(1)


def covered(maps: Tensor, anatomy: Anatomy) -> Tensor:
    """Maps (B, h, w) without the pixels that no patch covers, where they are of pixels."""
    height, width = anatomy.covers
    return maps[:, :height, :width] if maps.shape[1] >= height and maps.shape[2] >= width else maps
