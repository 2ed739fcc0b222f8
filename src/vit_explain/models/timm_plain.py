"""timm models with ordinary attention blocks: ViT, DeiT, DINOv2, DINOv3, EVA-02, BEiT, CLIP and SigLIP images."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import safe_open
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaBlockPostNorm
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from timm.models.vision_transformer_relpos import ResPostRelPosBlock, VisionTransformerRelPos
from torch import Tensor, nn

from ..errors import ModelError
from ..family import register
from ..structure import part
from ..timm_common import BUNDLED, NORMS, TWO_ATTENTIONS, Timm, config_of, two_attentions, with_checkpoint
from ..types import Anatomy, Attends, Readout

# Blocks whose norms come after attention and its projection, not before.
POST_NORM = (ResPostBlock, EvaBlockPostNorm, ResPostRelPosBlock)


@register
class TimmPlain(Timm):
    """Every block: one self-attention over all tokens, then an MLP."""

    title = "timm ViT, DeiT, DeiT-III, DINOv2, DINOv3, EVA-02, BEiT, NaFlexViT, CLIP and SigLIP image models"
    attends: Attends = "everywhere"
    modules = (
        "vision_transformer",
        "vision_transformer_hybrid",
        "vision_transformer_relpos",
        "deit",
        "eva",
        "beit",
        "naflexvit",
    )
    exclude = TWO_ATTENTIONS
    kinds = (VisionTransformer, Eva, Beit, VisionTransformerRelPos, NaFlexVit)

    def matches(self, model: nn.Module) -> bool:
        return super().matches(model) and not two_attentions(model)

    def names(self) -> list[str]:
        return [BUNDLED, *super().names()]

    def load(self, name: str, checkpoint: Path | None) -> nn.Module:
        return _bundled(checkpoint) if name == BUNDLED else super().load(name, checkpoint)

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        # NaFlexViT takes any size, and its patches may be made by a linear layer.
        any_size = isinstance(model, NaFlexVit)
        embed: Any = model.embeds if any_size else model.patch_embed
        size = shape[1:]
        channels = embed.in_chans if any_size else next(embed.parameters()).shape[1]
        if shape[0] != channels:
            raise ModelError(
                f"{self.name(model)} takes {channels} channels, not {shape[0]}; pass a preprocessed (B, C, H, W) tensor"
            )
        if any_size:
            grid = tuple(embed.dynamic_feat_size(size))
        elif embed.img_size is None or getattr(model, "dynamic_img_size", False):
            grid = self.grid_of(model, embed, size)
        elif tuple(embed.img_size) == size:
            grid = tuple(embed.grid_size)
        else:
            wanted = "x".join(map(str, embed.img_size))
            raise ModelError(
                f"{self.name(model)} takes {wanted} pixels (height x width), not {size[0]}x{size[1]}; "
                "timm.create_model(..., img_size=(H, W)) or dynamic_img_size=True builds it for another size"
            )
        blocks = tuple(f"blocks.{number}" for number in range(len(model.blocks)))
        patch = embed.patch_size if not hasattr(embed, "feature_ratio") else (size[0] // grid[0], size[1] // grid[1])
        covers = (grid[0] * patch[0], grid[1] * patch[1])
        return Anatomy(
            blocks,
            (grid[0], grid[1]),
            covers,
            model.num_prefix_tokens,
            self._readout(model),
            features=self._features(model, blocks),
            undroppable=self._undroppable(model),
            attended=self._attended(model, blocks),
        )

    def _features(self, model: Any, blocks: tuple[str, ...]) -> str:
        if isinstance(model.blocks[-1], POST_NORM):  # attention gets the tokens as they enter the block
            return blocks[-2] if len(blocks) > 1 else part(model, ("norm_pre", "patch_embed"))[0]
        return f"{blocks[-1]}.{part(model.blocks[-1], NORMS)[0]}"

    def _readout(self, model: Any) -> Readout:
        prefix, pooling = model.num_prefix_tokens, model.global_pool
        if isinstance(model, VisionTransformerDistilled):
            return Readout(tokens=(0, 1))  # the mean of the class head and the distillation head
        if getattr(model, "attn_pool", None) is not None:
            return Readout(attention=True)
        if pooling in ("max", "avgmax"):
            raise ModelError(
                f"{self.name(model)} reads its tokens by {pooling} pooling, which no row of weights describes"
            )
        if pooling == "avg" or prefix == 0:
            everything = getattr(model, "pool_include_prefix", False)
            return Readout(tokens=tuple(range(prefix)) if everything else (), patches=True)
        return Readout(tokens=(0,))

    def _attended(self, model: Any, blocks: tuple[str, ...]) -> tuple[str, ...]:
        # Attention and MLP side by side have no drop_path1, and no tokens between them.
        apart = all(hasattr(block, "drop_path1") for block in model.blocks)
        return tuple(f"{name}.drop_path1" for name in blocks) if apart else ()

    def _undroppable(self, model: Any) -> str | None:
        if getattr(model, "rope", None) is not None:
            return f"{self.name(model)} gives positions to attention (rotary), not to tokens"
        # Blocks are alike: asking all of them would take as long as a small model's forward on an accelerator.
        biased = isinstance(model, VisionTransformerRelPos) or any(
            getattr(part, "rel_pos_bias", None) is not None or hasattr(part, "relative_position_bias_table")
            for part in (model, *model.blocks[0].modules())
        )
        return f"{self.name(model)} gives positions to attention (relative bias), not to tokens" if biased else None

    def lens(self, model: Any, tokens: Tensor) -> Any:
        return model.forward_head(model.norm(tokens))

    def projection(self, model: Any, block: int) -> Tensor:
        one = model.blocks[block]
        if not hasattr(one, "attn"):
            raise ModelError(
                f"{self.name(model)} computes attention and MLP together: what values become is not known by itself; "
                "use attention or rollout instead"
            )
        gated = getattr(one.attn, "gate", None) is not None
        normalised = not isinstance(getattr(one.attn, "norm", nn.Identity()), nn.Identity)
        if gated or normalised or isinstance(one, POST_NORM):
            does = "gates attention" if gated else "normalises attention" if normalised else "normalises its projection"
            raise ModelError(
                f"{self.name(model)} {does} before it joins the tokens: values have no norm of their own; "
                "use attention or rollout instead"
            )
        weight = one.attn.proj.weight
        scale = getattr(getattr(one, "ls1", None), "gamma", getattr(one, "gamma_1", None))
        return weight if scale is None else weight * scale[:, None]


def _bundled(checkpoint: Path | None) -> Any:
    """The trained model in the package: its file says how to build it and what its classes are called."""
    with resources.as_file(resources.files("vit_explain") / "assets" / "bundled.safetensors") as file:
        with safe_open(file, "pt") as archive:
            facts = archive.metadata()
        labels = json.loads(facts["labels"])
        arguments = json.loads(facts["model_args"])
        model = with_checkpoint(facts["architecture"], checkpoint or file, arguments)
    model.pretrained_cfg = {
        **config_of(model),
        "architecture": BUNDLED,
        "label_names": labels if len(labels) == model.num_classes else None,
        "input_size": (3, *model.patch_embed.img_size),
        "crop_pct": 1.0,
    }
    return model
