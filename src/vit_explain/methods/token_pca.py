"""Principal components of the patch tokens."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from ..options import Range, nth
from ..principal import leading_component
from ..registry import method
from ..types import Attribution, Trace


@method(
    paper="Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024",
    family="looking inside",
    means="What divides the patches most: one principal component of their tokens at one layer.",
    does_not_mean="It knows neither class nor score. The sign is a convention, and the components of two pictures are "
    "not the same direction.",
    needs={"tokens"},
    class_specific=False,
    signed=True,
)
def token_pca(
    trace: Trace,
    *,
    component: Annotated[int, Range(0)] = 0,
    layer: int = -1,
    layer_norm: bool = True,
    foreground: bool = False,
) -> Attribution:
    """What divides the patches most: one principal component of their tokens.

    ``map_i = (x_i − mean) · e``, (B, h, w), with e the ``component``-th leading eigenvector of the covariance of the
    patch tokens x as they leave the block. ``explained`` is the component's share of the variance.

    Each image is by itself (the paper takes the components of several pictures of one kind together, so that their
    colours agree). A component has no sign of its own: here it is larger towards the middle of the picture,
    ``Σ_i map_i · (distance of i from the centre) < 0``; where that is zero, its largest entry is positive.

    ``component``: from 0. ``layer``: block number from 0, or from the end when negative. ``layer_norm``: tokens are
    standardised over their channels, as the model's last norm does (its learned weights are left out). ``foreground``:
    as in the paper, patches where component 0 is not above zero are background, which gets zero, and the components are
    those of the other patches; ``foreground_share`` tells how many these are. Of n such patches there are components 0
    to n − 2; for others the map is zero, with a warning.
    """
    number = nth(layer, len(trace.anatomy.blocks), "token_pca", "layer")
    tokens = trace.tokens[number + 1].detach()[:, trace.anatomy.prefix :].float()
    most = min(tokens.shape[1] - 1, tokens.shape[2])
    if component >= most:
        raise OptionError(
            f"token_pca: component {component} does not exist; {tokens.shape[1]} patches of {tokens.shape[2]} channels "
            f"have {f'components 0 to {most - 1}' if most else 'none'}"
        )
    if layer_norm:
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
    grid = trace.anatomy.grid
    kept = torch.ones_like(tokens[..., 0])
    if foreground:
        first, _ = _component(tokens, kept, 0)
        kept = (_turned(first, grid) > 0).float()
    found, explained = _component(tokens, kept, component)
    facts = {"explained": explained}
    warnings: list[list[str]] = []
    if foreground:
        facts["foreground_share"] = kept.mean(1)
        warnings = [_lacking(round(count), component) for count in kept.sum(1).tolist()]
    return Attribution(_turned(found, grid).unflatten(1, grid), facts, warnings)


def _lacking(kept: int, component: int) -> list[str]:
    if component < kept - 1:
        return []
    return [f"the foreground has {kept} patches and so no component {component}: the map is zero everywhere"]


def _component(tokens: Tensor, kept: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Coordinates (B, n) of the kept tokens along one component, zero for the others; its share of variance (B,)."""
    weights = kept[..., None]
    mean = (tokens * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1)
    centred = (tokens - mean) * weights
    if number == 0:
        along, value = leading_component(centred)
        return along * kept, value / centred.square().sum((1, 2)).clamp_min(torch.finfo(value.dtype).tiny)
    few = tokens.shape[1] <= tokens.shape[2]  # the smaller of both matrices has the same eigenvalues
    products = centred @ centred.mT if few else centred.mT @ centred
    values, vectors = torch.linalg.eigh(products)  # smallest first
    values, vector = values.clamp_min(0), vectors[..., -1 - number]
    value = values[:, -1 - number]
    along = vector * value.sqrt()[:, None] * kept if few else (centred @ vector[..., None]).squeeze(2)
    return along, value / values.sum(1).clamp_min(torch.finfo(values.dtype).tiny)


def _turned(along: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, n) with each image's sign so that values fall off from the centre."""
    numbers = (torch.arange(size, dtype=along.dtype, device=along.device) for size in grid)
    down, right = (own.mul(2).add(1).div(len(own)).sub(1) for own in numbers)
    radius = (down[:, None].square() + right.square()).sqrt().flatten()
    radius = radius - radius.mean()
    lean = along @ radius
    undecided = lean.abs() <= 1e-5 * along.norm(dim=1) * radius.norm()
    size = along.abs()
    # Of entries that are equally large but for rounding, the first.
    largest = (size >= 0.999 * size.amax(1, keepdim=True)).float().argmax(1, keepdim=True)
    negative = torch.where(undecided, along.gather(1, largest).squeeze(1) < 0, lean > 0)
    return torch.where(negative[:, None], -along, along)
