"""timm's image encoders of language models, as classifiers: DeepSeek, Qwen3 and Gemma 4 ViT."""

from __future__ import annotations

from typing import Any

from timm.models.deepseek_vit import DeepseekVitClassifier
from timm.models.gemma4_vit import Gemma4VitClassifier
from timm.models.qwen3_vit import Qwen3VitClassifier
from torch import Tensor, nn

from ..errors import ModelError
from ..family import register
from ..timm_common import Timm
from ..types import Anatomy, Attends, Readout

# Where these models keep a projector that makes one token of several.
PROJECTORS = ("merger", "aligner")


@register
class TimmLanguage(Timm):
    """Ordinary blocks with rotary positions; the classifier reads the mean of the patches."""

    title = "timm DeepSeek, Qwen3 and Gemma 4 ViT"
    attends: Attends = "everywhere"
    modules = ("deepseek_vit", "qwen3_vit", "gemma4_vit")
    exclude = ("*_enc", "*_align", "*_merge")
    kinds = (DeepseekVitClassifier, Qwen3VitClassifier, Gemma4VitClassifier)

    def matches(self, model: Any) -> bool:
        return super().matches(model) and not model.encoder_pool

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        if model.global_pool != "avg":
            raise ModelError(f"{self.name(model)} pools none of its tokens, so it has no scores of classes")
        encoder, gemma = model.encoder, isinstance(model, Gemma4VitClassifier)
        down, across = encoder.patch_embed.patch_size
        padded = getattr(encoder.patch_embed, "dynamic_img_pad", False)
        if not padded and (shape[1] % down or shape[2] % across):
            raise ModelError(
                f"{self.name(model)} takes pictures whose sides are multiples of {down}x{across} pixels "
                f"(height x width), not {shape[1]}x{shape[2]}"
            )
        grid = -(-shape[1] // down), -(-shape[2] // across)
        blocks = tuple(f"encoder.blocks.{number}" for number in range(len(encoder.blocks)))
        return Anatomy(
            blocks,
            grid,
            (grid[0] * down, grid[1] * across),
            0,
            Readout(patches=True),
            features=f"{blocks[-1]}.norm1",
            undroppable=f"{self.name(model)} gives positions to attention (rotary), not to tokens",
            # Gemma's norm after attention comes before the residual.
            attended=tuple(f"{block}.{'norm2' if gemma else 'drop_path1'}" for block in blocks),
        )

    def lens(self, model: Any, tokens: Tensor) -> Any:
        norm = getattr(model.encoder, "norm", nn.Identity())
        return model.forward_head(norm(tokens))

    def projection(self, model: Any, block: int) -> Tensor:
        part = model.encoder.blocks[block]
        if isinstance(model, Gemma4VitClassifier):
            raise ModelError(
                f"{self.name(model)} normalises its projection before it joins the tokens: values have no norm of "
                "their own; use attention or rollout instead"
            )
        scale = getattr(part, "gamma_1", None)
        weight = part.attn.proj.weight
        return weight if scale is None else weight * scale[:, None]
