"""open_clip: its own image model, and image-text models by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError, reason
from ..family import register
from ..hf_pictures import OPENAI
from ..image import Preprocessing
from ..prompts import TOKENIZERS
from ..structure import anatomy_of, check_size, output_projection, replayed
from ..types import Anatomy, Attends, Readout
from ..weights import load_weights, read_state

PREFIX = "open_clip/"
SCHEMAS = ("hf-hub:", "local-dir:")


@register
class OpenClipImages:
    """``open_clip.transformer.VisionTransformer``, which gives features; with prompts see ``prompts``."""

    title = "open_clip's VisionTransformer"
    attends: Attends = "everywhere"

    def matches(self, model: nn.Module) -> bool:
        return any(
            kind.__module__ == "open_clip.transformer" and kind.__name__ == "VisionTransformer"
            for kind in type(model).__mro__
        )

    def refuses(self, model: nn.Module) -> str | None:
        if not type(model).__module__.startswith("open_clip.") or hasattr(model, "encode_text"):
            return None
        return f"open_clip's {type(model).__name__} is not supported by itself; supported: {self.title}"

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        check_size(self.name(model), shape, 3, tuple(model.image_size))
        if not getattr(model.transformer, "batch_first", False):
            raise ModelError(f"{self.name(model)} has tokens before images: open_clip 3.0 or later is needed")
        return anatomy_of(
            model, self._blocks(model), tuple(model.grid_size), tuple(model.patch_size), 1, self._readout(model)
        )

    def _readout(self, model: Any) -> Readout:
        if model.attn_pool is not None:
            if model.attn_pool_contrastive is not None or (model.pool_type != "tok" and len(model.attn_pool.query) > 1):
                raise ModelError(
                    f"{self.name(model)} reads its tokens through two pooling attentions, or several queries of one, "
                    'which no row of weights describes; one with attentional_pool=True and pool_type="tok" is supported'
                )
            return Readout(attention=True, queries=1)  # CoCa's other queries are for its text decoder
        if model.pool_type not in ("tok", "avg"):
            raise ModelError(f"{self.name(model)} has no pooling (pool_type={model.pool_type!r})")
        return Readout(tokens=(0,)) if model.pool_type == "tok" else Readout(patches=True)

    def _blocks(self, model: Any) -> list[str]:
        return [f"transformer.resblocks.{number}" for number in range(len(model.transformer.resblocks))]

    def classes(self, model: Any) -> int:
        return 0

    def logits(self, output: Any) -> Tensor:
        return output[0] if isinstance(output, tuple) else output

    def lens(self, model: Any, tokens: Tensor) -> Any:
        return replayed(model, self._blocks(model)[-1], (3, *model.image_size), tokens)

    def projection(self, model: Any, block: int) -> Tensor:
        part = model.transformer.resblocks[block]
        between = (getattr(part.attn, "ln_inner", None), getattr(part, "ln_attn", None))
        if getattr(part.attn, "head_scale", None) is not None or any(isinstance(one, nn.LayerNorm) for one in between):
            raise ModelError(
                f"{self.name(model)} scales or normalises attention before it joins the tokens: values have no norm of "
                "their own; use attention or rollout instead"
            )
        return output_projection(part)

    def preprocessing(self, model: Any) -> Preprocessing:
        return Preprocessing(tuple(model.image_size), *OPENAI)

    def labels(self, model: Any) -> list[str] | None:
        return None

    def name(self, model: Any) -> str:
        return f"open_clip's {type(model).__name__}"

    def names(self) -> list[str]:
        return [f"{PREFIX}*"]

    def load(self, name: str, checkpoint: Path | None) -> nn.Module:
        """``open_clip/ViT-B-32:openai``: an architecture and which of its weights; or ``open_clip/hf-hub:...``."""
        try:
            import open_clip
        except ImportError as error:
            raise ModelError(f"{name} needs open_clip ({reason(error)}): pip install 'vit-explain[clip]'") from error
        known = name.removeprefix(PREFIX)
        architecture, _, tag = (known, "", "") if known.startswith(SCHEMAS) else known.partition(":")
        if checkpoint is None and not tag and not known.startswith(SCHEMAS):
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
            raise ModelError(f"{name}: say which weights, as in {name}:TAG; known for {architecture}: {tags}")
        try:
            model: Any = open_clip.create_model(architecture, pretrained=None if checkpoint else tag or None)
            tokenizer = open_clip.get_tokenizer(architecture)
        except Exception as error:  # hubs, proxies and disks fail in many ways; all of them mean "no such model"
            raise ModelError(f"{name} could not be loaded ({' '.join(str(error).split())[:300]})") from error
        if checkpoint is not None:
            model = load_weights(model, read_state(checkpoint), checkpoint, name)
        TOKENIZERS[model] = tokenizer
        return model.eval()
