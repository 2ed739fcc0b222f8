"""What is checked of a model with random weights: nothing here knows which library it is from."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_explain import Explainer
from vit_explain.capture import look
from vit_explain.errors import VitExplainError
from vit_explain.family import family_of
from vit_explain.matching import match

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from geometry import misplaced, stilled

MILLION = 1e6


@dataclass
class Found:
    """What is known of one name."""

    name: str
    module: str
    family: str = ""
    attention: bool = False  # whether attention methods apply, and what is captured is what was expected
    others: bool = False  # whether gradients and perturbation apply
    reason: str = ""
    numbers: str = ""  # "" not tried, "ok", or what failed
    parameters: float = 0.0
    signature: str = field(default="", repr=False)


def captured(model: nn.Module, name: str, module: str) -> Found:
    """Whether the attention calls of the model are those that its family says; it may be on the meta device."""
    found = Found(name, module, parameters=sum(p.numel() for p in model.parameters()) / MILLION)
    device = next(model.parameters()).device
    try:
        family = family_of(model)
        found.family = type(family).__name__
        size = family.preprocessing(model).size
        with torch.device("cpu"):
            anatomy = family.anatomy(model, (channels_of(model), *size))
        found.others = True
        if anatomy.plan is not None and not anatomy.plan.places:
            found.reason = anatomy.plan.reason.replace(family.name(model), "it")
            return found
        with torch.no_grad():
            seen = look(model, torch.zeros(1, channels_of(model), *size, device=device), {"attention"})
        match(seen.layers, anatomy)
        found.attention = True
    except VitExplainError as error:
        found.reason = str(error).replace(name, "it")
    except Exception as error:
        found.reason = f"{type(error).__name__}: {error}"[:200]
    return found


def channels_of(model: Any) -> int:
    return (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3,))[0]


def checked(model: nn.Module, *, attention: bool, near: int) -> str:
    """What is wrong with the numbers of this model; "ok" if nothing is.

    Looking must change no output, maps must be finite, and a batch must give what single images give. With
    ``attention``, what attention methods need of it: the values of every call must change most where the picture is
    changed, up to ``near`` cells away.
    """
    explainer = Explainer(model)
    size = explainer.preprocessing.size
    pixels = torch.randn(2, channels_of(model), *size)
    with torch.no_grad():  # some models keep tables for later calls, which inference mode would spoil
        before = values(model(pixels))
    methods = ("rollout", "gradient_rollout", "gae") if attention else ("saliency",)
    headless = explainer.family.classes(model) == 0
    for method in methods:
        target = None if method == "rollout" else first if headless else [0, 1]
        maps = explainer.attribute(pixels, target, method)
        if not maps.isfinite().all():
            return f"{method}: not finite"
        alone = explainer.attribute(pixels[1:], target[1] if isinstance(target, list) else target, method)
        if not torch.allclose(maps[1:], alone, rtol=1e-3, atol=1e-3 * float(maps.abs().max())):
            return f"{method}: a batch differs from single images"
    with torch.no_grad():
        if not torch.equal(before, values(model(pixels))):
            return "looking changed the output"
    if attention:
        grid = explainer.family.anatomy(model, tuple(pixels.shape[1:])).grid
        for cell in ((grid[0] // 3, grid[1] // 2), (grid[0] - 2, 1)):
            wrong = misplaced(model, size, cell, near=near)
            if wrong:  # the fault may be that of random weights
                wrong = misplaced(stilled(copy.deepcopy(model)), size, cell, near=near)
            if wrong:
                return f"values of {', '.join(wrong[:3])} change elsewhere than the picture does"
    return "ok"


def values(output: Any) -> Tensor:
    """(B, numbers) of what a model returned: its first tensor."""
    known = [output] if isinstance(output, Tensor) else output.values() if isinstance(output, dict) else output
    return next(one for one in known if isinstance(one, Tensor)).flatten(1)


def first(output: Any) -> Tensor:
    """A number an image, of models without classes."""
    return values(output)[:, 0]
