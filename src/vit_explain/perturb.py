"""Perturbation: what becomes of y when parts of an image are left out.

Images are worked on one after the other, so that an image's forwards, and with them its values to the last bit, are
the same alone and in a batch. No more masked pictures exist at a time than one forward takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import OptionError
from .options import Range
from .types import Anatomy, Inquiry, Trace

# How patches are left out.
Fill = Literal["auto", "drop", "mean", "blur", "black", "zero", "darkest"]
FILLS = {
    "auto": "`drop` where the model allows it, else `mean`, and methods warn of it",
    "drop": "they are no tokens at all, as Naseer et al. (NeurIPS 2021) leave them out of a ViT",
    "mean": "painted over in the image's mean colour",
    "blur": "painted over with the image blurred by a Gaussian whose standard deviation is a patch's side",
    "black": "painted over with what the preprocessing makes of black",
    "zero": "painted over with zeros, the mean colour of the pictures that the preprocessing was made for",
    "darkest": "painted over with each channel's lowest value in the image, for inputs that are not RGB",
}
Score = Literal["probability", "logit"]  # of a class: its softmax probability or its logit
Samples = Annotated[int, Range(2, 1e6)]


def chosen_fill(trace: Trace, fill: Fill, *, none_kept: bool = False) -> tuple[Fill, list[list[str]]]:
    """How patches are really left out, and the warnings about it, an image's each.

    ``none_kept``: whether some mask keeps no patch at all, which only heads that read a prefix token have an answer to.
    """
    undroppable, readout = trace.anatomy.undroppable, trace.anatomy.readout
    if none_kept and not undroppable and readout.needs_patches:
        alone = "a mean of patches" if readout.beside else "patches alone"
        undroppable = f"The head reads {alone}, so it has no answer without any"
        if fill == "drop":
            raise OptionError(f"{undroppable}; fill them instead")
    if fill != "auto":
        return fill, []
    if undroppable is None:
        return "drop", []
    warning = f"{undroppable}: patches that are left out were painted in the image's mean colour instead"
    return "mean", [[warning]] * len(trace.pixels)


def turns(trace: Trace, chunks: Sequence[Sequence[Tensor]]) -> Iterator[tuple[int, Tensor, Inquiry]]:
    """(image, rows, the inquiry about that image alone) for each chunk of rows of each image, with progress told."""
    done, total = 0, sum(len(rows) for own in chunks for rows in own)
    for image, own in enumerate(chunks):
        alone = trace.inquiry.single(image)
        for rows in own:
            yield image, rows, alone
            done += len(rows)
            trace.inquiry.progress(done, total)


def chunked(trace: Trace, rows: int) -> Sequence[Tensor]:
    """Numbers 0 to ``rows`` - 1 in chunks that a forward of whole pictures takes."""
    return torch.arange(rows).split(trace.inquiry.rows())


@dataclass(frozen=True)
class _Plan:
    """The distinct masks of an image (n, h·w), which of them each given mask is, and which go into one forward."""

    kept: Tensor
    which: Tensor
    chunks: list[Tensor]


def answers(trace: Trace, keep: Tensor, fill: Fill, *, probability: bool = True) -> Tensor:
    """y (B, n) of each image when only the patches in ``keep``, (n, h, w) or (B, n, h, w), are left.

    Equal masks are asked for once. Dropped patches make short inputs: masks that keep equally many share a forward.
    """
    keep = keep.to(trace.pixels.device)
    plans = [_plan(trace, one, fill) for one in (keep.unsqueeze(0) if keep.ndim == 3 else keep)]
    plans *= len(trace.pixels) // len(plans)
    found = [torch.empty(len(plan.kept), dtype=torch.float32, device=keep.device) for plan in plans]
    pictures = trace.pixels.split(1)
    behind = (
        [] if fill == "drop" else [backdrop(trace.anatomy, trace.inquiry.black, picture, fill) for picture in pictures]
    )
    for image, rows, alone in turns(trace, [plan.chunks for plan in plans]):
        kept = plans[image].kept[rows]
        if fill == "drop":
            found[image][rows] = alone.probe(pictures[image], kept, probability=probability)
        else:
            painted = torch.where(at_pixels(trace, kept), pictures[image], behind[image])
            found[image][rows] = alone.probe(painted, probability=probability)
    return torch.stack([values[plan.which] for values, plan in zip(found, plans, strict=True)])


def _plan(trace: Trace, keep: Tensor, fill: Fill) -> _Plan:
    kept, which = torch.unique(keep.flatten(1), dim=0, return_inverse=True)
    if fill != "drop":
        return _Plan(kept, which, list(chunked(trace, len(kept))))
    counts = kept.sum(1).cpu()
    groups = [(int(count), (counts == count).nonzero()[:, 0]) for count in counts.unique()]
    return _Plan(kept, which, [rows for count, group in groups for rows in group.split(trace.inquiry.rows(count))])


class Seen(Protocol):
    """Pixels (B, C, H, W) and where their patches are."""

    @property
    def pixels(self) -> Tensor: ...

    @property
    def anatomy(self) -> Anatomy: ...


def at_pixels(seen: Seen, kept: Tensor) -> Tensor:
    """(n, h·w) booleans on patches -> (n, 1, H, W) on pixels; pixels that no patch covers stay as they are."""
    (height, width), (h, w) = seen.anatomy.covers, seen.anatomy.grid
    large = kept.view(-1, 1, h, w).repeat_interleave(height // h, 2).repeat_interleave(width // w, 3)
    below, right = seen.pixels.shape[2] - height, seen.pixels.shape[3] - width
    return F.pad(large, (0, right, 0, below), value=True)


def backdrop(anatomy: Anatomy, black: Sequence[float], picture: Tensor, fill: Fill) -> Tensor:
    """What a picture (1, C, H, W) is painted over with; broadcasts to it. ``black``: see ``types.Inquiry``."""
    if fill == "mean":
        return picture.mean((2, 3), keepdim=True)
    if fill == "black":
        return _black(black, picture)
    if fill == "darkest":
        return picture.amin((2, 3), keepdim=True)
    return torch.zeros_like(picture[..., :1, :1]) if fill == "zero" else blurred(picture, patch_side(anatomy))


def _black(black: Sequence[float], picture: Tensor) -> Tensor:
    if len(black) != picture.shape[1]:
        raise OptionError(
            f"what black is in inputs of {picture.shape[1]} channels is not known; take fill='darkest' instead"
        )
    return picture.new_tensor(black).view(1, -1, 1, 1)


def patch_side(anatomy: Anatomy) -> float:
    """The side of a patch in pixels; of patches that are not square, the mean of the two."""
    return (anatomy.covers[0] / anatomy.grid[0] + anatomy.covers[1] / anatomy.grid[1]) / 2


def blurred(picture: Tensor, sigma: float) -> Tensor:
    """The picture (1, C, H, W) blurred by a Gaussian of ``sigma`` pixels; its border is continued outwards."""
    reach = int(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=picture.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(picture.dtype)
    planes = picture.transpose(0, 1)
    planes = F.conv2d(F.pad(planes, (0, 0, reach, reach), mode="replicate"), kernel.view(1, 1, -1, 1))
    planes = F.conv2d(F.pad(planes, (reach, reach, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return planes.transpose(0, 1)


def dropped_fact(fill: Fill, values: Tensor) -> dict[str, Tensor]:
    """One where patches were dropped as tokens, zero where they were painted over; an image each."""
    return {"tokens_dropped": torch.full((len(values),), float(fill == "drop"))}
