"""Swin Transformers of Hugging Face's transformers, first and second version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import ModelError
from ..family import Placed, register
from ..huggingface import HuggingFace, type_of
from ..layouts import Grid, swin
from ..structure import check_size, pair
from ..types import Anatomy


@register
class HuggingFaceSwin(HuggingFace, Placed):
    """Attention inside windows, which every second block shifts by half a window; between stages 2×2 tokens merge."""

    title = "transformers Swin and Swin V2 image models"

    def matches(self, model: nn.Module) -> bool:
        return type_of(model) in ("swin", "swinv2")

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        config, size = model.config, (shape[1], shape[2])
        self.check_visible(model)
        fixed = pair(config.image_size) if config.use_absolute_embeddings else None
        check_size(self.name(model), shape, config.num_channels, fixed)
        # The model itself when nothing is on top of it, else where the library keeps it.
        path = model.base_model_prefix if hasattr(model, model.base_model_prefix) else ""
        stages = [stage.blocks for stage in model.get_submodule(path).encoder.layers]
        patch = pair(config.patch_size)
        first = (-(-size[0] // patch[0]), -(-size[1] // patch[1]))  # pictures are padded to whole patches
        features = f"{path}.layernorm".lstrip(".")
        return swin(self.name(model), size, first, patch, stages, self._windows(model), features=features, padded=True)

    def _windows(self, model: Any) -> Callable[[Any, Grid], tuple[Grid, Grid]]:
        name, first_version = self.name(model), model.config.model_type == "swin"

        def windows(block: Any, grid: Grid) -> tuple[Grid, Grid]:
            window, shift = block.window_size, block.shift_size
            # The first version cuts its windows to small grids while it runs; the second is built with smaller ones.
            if first_version and min(grid) <= window:
                if min(grid) < window:
                    raise ModelError(
                        f"{name} has windows of {window}x{window} tokens, which do not fit a grid of "
                        f"{grid[0]}x{grid[1]}: give larger pictures"
                    )
                shift = 0
            return (window, window), (shift, shift)

        return windows
