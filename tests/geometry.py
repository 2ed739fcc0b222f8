"""Where on the picture the tokens of each attention call lie, found out by changing the picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vit_explain import Explainer
from vit_explain.inquiry import Subject
from vit_explain.layer import Layer
from vit_explain.placed import descended, from_keys, unmerged
from vit_explain.types import Trace


def looked(model: nn.Module, pixels: Tensor) -> Trace:
    """What the package sees of each attention call, values too."""
    family = Explainer(model).family
    anatomy = family.anatomy(model, tuple(pixels.shape[1:]))  # type: ignore[arg-type]
    with torch.no_grad():
        # "values" are asked for through a need that every layout has.
        trace, _ = Subject(model, family, anatomy).look(pixels, frozenset({"attention", "gradient"}))
    return trace


def stilled(model: nn.Module) -> nn.Module:
    """The model, changed so that tokens stay where they are: attention adds nothing, convolutions see the middle of
    their window alone, and those of single channels put out what they get. For deep models whose random weights carry a
    change away from its place."""
    for part in model.modules():
        attends = "attention" in type(part).__name__.lower()
        if attends and isinstance(projection := getattr(part, "proj", None), nn.Linear):
            nn.init.zeros_(projection.weight)
        if isinstance(part, nn.Conv2d) and all(side % 2 for side in part.kernel_size):
            middle = torch.zeros(part.kernel_size)
            middle[part.kernel_size[0] // 2, part.kernel_size[1] // 2] = 1
            part.weight.data *= middle
            if part.groups == part.in_channels == part.out_channels:
                nn.init.dirac_(part.weight, part.groups)
    return model


def misplaced(model: nn.Module, size: tuple[int, int], cell: tuple[int, int], near: int = 0) -> list[str]:
    """The names of attention calls whose values change most elsewhere than where the picture was changed.

    ``cell``: (row, column) of the model's coarsest grid; there the picture gets a square of noise. ``near``: cells that
    the place may be away from it, where convolutions overlap.
    """
    generator = torch.Generator().manual_seed(0)
    plain = 0.1 * torch.randn(1, 3, *size, generator=generator)
    anatomy: Any = Explainer(model).family.anatomy(model, (3, *size))  # type: ignore[arg-type]
    (height, width), (h, w) = anatomy.covers, anatomy.grid
    down, across = height // h, width // w
    changed = plain.clone()
    square = changed[..., cell[0] * down : (cell[0] + 1) * down, cell[1] * across : (cell[1] + 1) * across]
    square += torch.randn(square.shape, generator=generator)  # without edges, which convolutions next to it would see
    before, after = looked(model, plain), looked(model, changed)
    return [
        layer.name
        for number, layer in enumerate(_before_places_are_lost(after.layers))
        if _distance(after, number, _change(before, after, number), cell) > near
    ]


def _before_places_are_lost(layers: list[Layer]) -> list[Layer]:
    """Up to the first block that nothing goes around: what leaves it has been anywhere (LeViT)."""
    for number, layer in enumerate(layers):
        skip = None if layer.place is None else layer.place.skip
        if layer.place is not None and skip is not None and bool((skip == layer.place.leaving).all()):
            return layers[: number + 1]
    return layers


def _change(before: Trace, after: Trace, number: int) -> Tensor:
    """How much each key's value changed: (windows, keys)."""
    one, other = before.layers[number].v, after.layers[number].v
    assert one is not None and other is not None
    return (one - other).float().norm(dim=-1).norm(dim=1)


def _distance(trace: Trace, number: int, change: Tensor, cell: tuple[int, int]) -> int:
    """Cells between ``cell`` and the one that changed most."""
    layer, coarse, row = trace.layers[number], trace.anatomy.grid, change
    plan = trace.anatomy.plan
    if plan is not None:
        row = descended(trace.layers[:number], unmerged(layer, from_keys(layer, change)))
    row = trace.patches(row)
    # The coarse cells that the middles of the finer ones lie in, by pixels.
    covers = trace.anatomy.covers if plan is None else plan.covers
    rows, columns = (
        ((torch.arange(fine) + 0.5) * pixels / fine / (whole / cells)).long().clamp(max=cells - 1)
        for fine, pixels, whole, cells in zip(row.shape[1:], covers, trace.anatomy.covers, coarse, strict=True)
    )
    places = (rows[:, None] * coarse[1] + columns).flatten()
    sums = torch.zeros(coarse[0] * coarse[1]).scatter_add(0, places, row.view(-1))
    place = int((sums / torch.bincount(places, minlength=len(sums)).clamp_min(1)).argmax())
    return max(abs(place // coarse[1] - cell[0]), abs(place % coarse[1] - cell[1]))
