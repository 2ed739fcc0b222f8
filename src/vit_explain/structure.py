"""What plain Vision Transformers of many libraries have in common, found by the names that libraries give their parts.

For families: which modules methods read, and the model's own head run on other tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ModelError
from .hooks import hooked
from .types import Anatomy, Readout

# The norm before attention; attention itself; the last linear layer in it; what scales it on its way into the stream.
NORMS = ("norm1", "layernorm_before", "layer_norm1", "ln_1")
ATTENTION = ("attention", "self_attention", "self_attn", "attn")
PROJECTIONS = ("o_proj", "out_proj", "proj", "output.dense")
SCALES = ("layer_scale1", "ls1", "ls_1")
SCALE_WEIGHTS = ("lambda1", "gamma")
BARE_SCALES = ("lambda_1", "gamma_1")
STOCHASTIC = ("drop_path", "drop_path1")  # depth, in training; otherwise this lets everything pass


def part(module: Any, names: Sequence[str]) -> tuple[str, Any]:
    """The first of these names (dots lead further down) that a module or tensor of the module has; else '', None."""
    for name in names:
        found = module
        for step in name.split("."):
            found = getattr(found, step, None)
        if isinstance(found, (nn.Module, Tensor)):
            return name, found
    return "", None


def anatomy_of(
    model: nn.Module,
    blocks: Sequence[str],
    grid: tuple[int, int],
    patch: tuple[int, int],
    prefix: int,
    readout: Readout,
    *,
    undroppable: str | None = None,
    unread: int = 0,
    remembers: bool = False,
) -> Anatomy:
    """The anatomy of a model whose blocks are x + attention(norm(x)), then an MLP alike."""
    last = model.get_submodule(blocks[-1])
    scale, _ = part(last, SCALES)
    attention, _ = part(last, ATTENTION)
    added = scale or attention
    if part(last, BARE_SCALES)[0]:  # then only what comes behind it puts out what is added
        added, _ = part(last, STOCHASTIC)
    return Anatomy(
        tuple(blocks),
        grid,
        (grid[0] * patch[0], grid[1] * patch[1]),
        prefix,
        readout,
        features=f"{blocks[-1]}.{part(last, NORMS)[0]}",
        undroppable=undroppable,
        attended=tuple(f"{block}.{added}" for block in blocks) if added else (),
        unread=unread,
        remembers=remembers,
    )


def within(anatomy: Anatomy, path: str) -> Anatomy:
    """The same for a model that holds the anatomy's model at ``path``."""
    return dataclasses.replace(
        anatomy,
        blocks=tuple(f"{path}.{block}" for block in anatomy.blocks),
        features=f"{path}.{anatomy.features}",
        attended=tuple(f"{path}.{name}" for name in anatomy.attended),
    )


def output_projection(block: nn.Module) -> Tensor:
    """``W_O`` (D, H·Dv) of a block's attention, with what scales it on its way into the residual stream."""
    weight = part(part(block, ATTENTION)[1], PROJECTIONS)[1].weight
    _, bare = part(block, BARE_SCALES)
    scale = part(part(block, SCALES)[1], SCALE_WEIGHTS)[1] if bare is None else bare
    return weight if scale is None else weight * scale[:, None]


def replayed(model: nn.Module, last: str, shape: tuple[int, int, int], tokens: Tensor) -> Any:
    """What the model would return if ``tokens`` (B, N, D) had left its last block, called ``last``.

    The model runs on one empty picture of ``shape`` (C, h, w), and its head reads the tokens instead.
    """
    reference = next(model.parameters())
    picture = torch.zeros(1, *shape, dtype=reference.dtype, device=reference.device)
    with hooked(model.get_submodule(last), after=lambda _: tokens.to(reference.dtype)):
        return model(picture)


def check_size(name: str, shape: tuple[int, int, int], channels: int, size: tuple[int, int] | None) -> None:
    """A ``ModelError`` unless (C, h, w) pixels have these channels and, where it is given, this size."""
    if shape[0] != channels:
        raise ModelError(f"{name} takes {channels} channels, not {shape[0]}; pass a preprocessed (B, C, H, W) tensor")
    if size is not None and shape[1:] != size:
        raise ModelError(
            f"{name} takes {size[0]}x{size[1]} pixels (height x width), not {shape[1]}x{shape[2]}; "
            "its position embeddings are made for that size"
        )


def pair(value: Any) -> tuple[int, int]:
    """(height, width) of what configurations give as one number or as two."""
    height, width = value if isinstance(value, (list, tuple)) else (value, value)
    return int(height), int(width)
