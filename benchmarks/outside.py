"""Methods of other packages, called as their users call them, to stand in one table with ours.

Which of ours is beside each, and why numbers may differ, is said in ``BESIDE``.
"""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_explain import other_method
from vit_explain.registry import Method

sys.path += [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests" / "peers")]

STEPS, TOGETHER = 50, 32  # of captum's integrated gradients: its default, and rows a forward
# Theirs -> (ours, why the two may differ).
BESIDE = {
    "captum IntegratedGradients": (
        "integrated_gradients",
        "the same integral by the same rule at as many points; captum's map is of pixels, ours of patches, which "
        "the metrics bring to the same patches; rounding differs",
    ),
    "grad-cam GradCAM": ("gradcam", "the same map, which the package brings to the size of the input and to 0 … 1"),
    "grad-cam LayerCAM": ("layercam", "the same map, which the package brings to the size of the input and to 0 … 1"),
    "torchcam LeGrad": ("legrad", "the same map, a mean over layers where ours is a sum; of torchvision's class with "
                                  "the same weights"),
}  # fmt: skip


def others() -> list[Method]:
    """One a package and method."""
    warnings.filterwarnings("ignore")  # theirs, about their dependencies
    return [
        other_method("captum IntegratedGradients", integrated, signed=True, forwards=52, backwards=50),
        other_method("grad-cam GradCAM", cam("GradCAM"), forwards=1, backwards=1),
        other_method("grad-cam LayerCAM", cam("LayerCAM"), forwards=1, backwards=1),
        other_method("torchcam LeGrad", legrad, forwards=1, backwards=1),
    ]


def integrated(model: Any, pixels: Tensor, classes: Tensor) -> Tensor:
    """captum's integrated gradients with its defaults, summed over channels."""
    from captum.attr import IntegratedGradients

    wanted = classes.to(pixels.device)
    rows = max(TOGETHER, len(pixels))
    found = IntegratedGradients(model).attribute(pixels, 0.0, wanted, n_steps=STEPS, internal_batch_size=rows)
    return found.detach().sum(1)


def cam(kind: str) -> Any:
    """pytorch-grad-cam's class of this name, at the last block's first norm, as its page on ViTs says."""

    def maps(model: Any, pixels: Tensor, classes: Tensor) -> Tensor:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        grid, prefix = model.patch_embed.grid_size, model.num_prefix_tokens

        def on_grid(tokens: Tensor) -> Tensor:
            return tokens[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)

        targets = [ClassifierOutputTarget(number) for number in classes.tolist()]
        with getattr(pytorch_grad_cam, kind)(model, [model.blocks[-1].norm1], on_grid) as made:
            found = made(pixels, targets)
        model.zero_grad(set_to_none=True)  # the package calls backward()
        return torch.from_numpy(found)

    maps.__doc__ = f"pytorch-grad-cam's {kind}."
    return maps


def legrad(model: Any, pixels: Tensor, classes: Tensor) -> Tensor:
    """torchcam's LeGrad over all layers, on torchvision's class with this model's weights."""
    from torchcam.methods import LeGrad

    theirs = with_registers(model).to(pixels)
    layers, prefix = list(theirs.encoder.layers), model.num_prefix_tokens
    with LeGrad(theirs, layers, prefix_tokens=prefix, grid_shape=model.patch_embed.grid_size) as extractor:
        (found,) = extractor(classes.tolist(), theirs(pixels), normalized=False)
    return found


def with_registers(model: Any) -> Any:
    """The same function as torchvision's class computes it, which knows neither register tokens nor scales of layers:
    what scales a layer goes into its weights, and registers go in front of the patches."""
    from alike import as_torchvision

    model = copy.deepcopy(model)
    registers = model.reg_token
    with torch.no_grad():
        for block in model.blocks:
            for scale, last in ((block.ls1, block.attn.proj), (block.ls2, block.mlp.fc2)):
                last.weight.mul_(scale.gamma[:, None])
                last.bias.mul_(scale.gamma)
        # The model gives positions to patches alone.
        model.pos_embed = nn.Parameter(F.pad(model.pos_embed, (0, 0, 1, 0)))
        made = as_torchvision(model)
        positions, patches = made.encoder.pos_embedding, made._process_input
        made.encoder.pos_embedding = nn.Parameter(F.pad(positions[:, 1:], (0, 0, model.num_prefix_tokens, 0)))
    made._process_input = lambda pixels: torch.cat([registers.expand(len(pixels), -1, -1), patches(pixels)], 1)
    return made
