"""Small models of other libraries and of timm's encoders of language models, one a family, for the tests that every
family takes part in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hub_models import Hub, LinearClassifier
from small_models import CLASSES, SIZE, SMALL, lively
from torch import Tensor, nn

from vit_explain.prompts import Prompted

SQUARE = (40, 40)  # for families that take square pictures only
PROMPTS = ["a photo of a parrot", "a photo of a cat", "a drawing of a temple", "nothing in particular"]


@dataclass(frozen=True)
class Example:
    build: Callable[[], nn.Module]
    size: tuple[int, int] = SIZE
    prefix: int = 1


def torchvision() -> nn.Module:
    models = pytest.importorskip("torchvision").models
    model = models.VisionTransformer(SQUARE[0], 8, 3, 2, 24, 48, num_classes=CLASSES)
    return lively(model)


def hf(
    name: str, *, config: str = "", attention: str = "sdpa", of: str = "", **options: Any
) -> Callable[[], nn.Module]:
    """A class of transformers; ``of``: the class of a configuration that holds the image model's."""

    def build() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        stem = name.removesuffix("WithTeacher").removesuffix("ForImageClassification").removesuffix("Model")
        depth = "vision_config" if of else None
        sizes = {
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "image_size": list(SIZE),
            "patch_size": 8,
            **options,
        }
        kind = getattr(transformers, of or config or f"{stem}Config")
        made = kind(**{depth: sizes}, num_labels=CLASSES) if depth else kind(**sizes, num_labels=CLASSES)
        made._attn_implementation = attention
        if depth:
            getattr(made, depth)._attn_implementation = attention
        torch.manual_seed(0)
        return lively(getattr(transformers, name)(made))

    return build


class Words:
    """A tokenizer: a number a word. As transformers calls it, or as open_clip does."""

    def __init__(self, length: int, dictionary: bool) -> None:
        self.length, self.dictionary = length, dictionary

    def __len__(self) -> int:
        return 50

    def __call__(self, texts: list[str], **_: Any) -> Any:
        rows = torch.zeros(len(texts), self.length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            words = text.split()
            row[: len(words)] = torch.tensor([1 + sum(map(ord, word)) % 40 for word in words])
            row[len(words)] = 49  # the largest number ends a text
        return {"input_ids": rows} if self.dictionary else rows


TEXT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 50,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "bos_token_id": 48,
    "eos_token_id": 49,
}
IMAGE = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": SQUARE[0],
    "patch_size": 8,
}


def pairs(name: str, attention: str = "sdpa") -> Any:
    """transformers' CLIPModel or SiglipModel."""
    transformers = pytest.importorskip("transformers")
    text = {**TEXT, "projection_size": 24} if name == "Siglip" else TEXT
    config = getattr(transformers, f"{name}Config")(text_config=dict(text), vision_config=dict(IMAGE))
    config._attn_implementation = attention
    torch.manual_seed(0)
    return lively(getattr(transformers, f"{name}Model")(config))


def open_clip_library() -> Any:
    """One of the versions that the extra asks for; a package to compare with may have installed an older one."""
    return pytest.importorskip("open_clip", minversion="3.0")


def open_clip(**vision: Any) -> Any:
    library = open_clip_library()
    torch.manual_seed(0)
    sizes = {"layers": 3, "width": 24, "head_width": 12, "patch_size": 8, "image_size": SIZE, **vision}
    text = {"context_length": 12, "vocab_size": 50, "width": 24, "heads": 2, "layers": 2}
    model = library.model.CLIP(24, sizes, text)
    return lively(model)


def prompted(build: Callable[[], nn.Module], dictionary: bool) -> Callable[[], nn.Module]:
    return lambda: Prompted(build(), PROMPTS, Words(12, dictionary)).eval()


def timm_in_transformers() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224",
        num_labels=CLASSES,
        model_args={"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3},
    )
    return lively(transformers.TimmWrapperForImageClassification(config))


def timm_in_open_clip() -> nn.Module:
    timm = pytest.importorskip("timm")
    model, library = open_clip(), open_clip_library()
    torch.manual_seed(0)
    visual = library.timm_model.TimmModel("vit_tiny_patch16_224", 24, SIZE, pool="", proj="linear")
    visual.trunk = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=0
    )
    visual.head = nn.Linear(24, 24, bias=False)
    model.visual = lively(visual)
    return model


def language(kind: str, **options: Any) -> Callable[[], nn.Module]:
    """timm's classifier of the image encoder of a language model."""

    def build() -> nn.Module:
        models = pytest.importorskip("timm").models
        return lively(getattr(getattr(models, f"{kind.lower()}_vit"), f"{kind}VitClassifier")(**SMALL, **options))

    return build


BEIT = {"use_relative_position_bias": True, "layer_scale_init_value": 0.5, "drop_path_rate": 0.0}
FREE = {"image_size": SQUARE[0]}  # positions are interpolated to other sizes

FAMILIES: dict[str, Example] = {
    "torchvision": Example(torchvision, SQUARE),
    "transformers ViT": Example(hf("ViTForImageClassification")),
    "transformers ViT, eager": Example(hf("ViTForImageClassification", attention="eager")),
    "transformers ViT without a head": Example(hf("ViTModel")),
    "transformers DeiT": Example(hf("DeiTForImageClassification"), prefix=2),
    "transformers DeiT with its teacher": Example(hf("DeiTForImageClassificationWithTeacher"), prefix=2),
    "transformers ViT-MSN": Example(hf("ViTMSNForImageClassification")),
    "transformers BEiT": Example(hf("BeitForImageClassification", **BEIT)),
    "transformers BEiT, class token": Example(
        hf("BeitForImageClassification", attention="eager", use_mean_pooling=False, **BEIT)
    ),
    "transformers Data2Vec": Example(
        hf("Data2VecVisionForImageClassification", use_shared_relative_position_bias=True, drop_path_rate=0.0)
    ),
    "transformers DINOv2": Example(hf("Dinov2ForImageClassification", **FREE)),
    "transformers DINOv2 without a head": Example(hf("Dinov2Model", attention="eager", **FREE)),
    "transformers DINOv2 with registers": Example(
        hf("Dinov2WithRegistersForImageClassification", num_register_tokens=4, **FREE), prefix=5
    ),
    "transformers DINOv3": Example(hf("DINOv3ViTModel", num_register_tokens=4, **FREE), prefix=5),
    "transformers I-JEPA": Example(hf("IJepaForImageClassification"), prefix=0),
    "transformers CLIP": Example(hf("CLIPForImageClassification", of="CLIPConfig", image_size=SQUARE[0]), SQUARE),
    "transformers CLIP without a head": Example(
        hf("CLIPVisionModel", config="CLIPVisionConfig", attention="eager", image_size=SQUARE[0]), SQUARE
    ),
    "transformers SigLIP": Example(
        hf("SiglipForImageClassification", of="SiglipConfig", image_size=SQUARE[0]), SQUARE, prefix=0
    ),
    "transformers SigLIP without a head": Example(
        hf("SiglipVisionModel", config="SiglipVisionConfig", image_size=SQUARE[0]), SQUARE, prefix=0
    ),
    "timm in transformers": Example(timm_in_transformers),
    "open_clip": Example(lambda: open_clip().visual),
    "open_clip with prompts": Example(prompted(open_clip, False)),
    "open_clip, mean of patches": Example(
        prompted(lambda: open_clip(pool_type="avg", ls_init_value=0.5, final_ln_after_pool=True), False)
    ),
    "open_clip, attention pooling": Example(
        prompted(
            lambda: open_clip(attentional_pool=True, attn_pooler_queries=1, attn_pooler_heads=2, qk_norm=True), False
        )
    ),
    "open_clip CoCa": Example(
        prompted(lambda: open_clip(attentional_pool=True, attn_pooler_queries=5, attn_pooler_heads=2), False)
    ),
    "timm in open_clip": Example(prompted(timm_in_open_clip, False)),
    "transformers CLIP with prompts": Example(prompted(lambda: pairs("CLIP"), True), SQUARE),
    "transformers SigLIP with prompts": Example(prompted(lambda: pairs("Siglip", "eager"), True), SQUARE, prefix=0),
    "timm DeepSeek ViT": Example(language("Deepseek"), prefix=0),
    "timm Qwen3 ViT": Example(language("Qwen3", pos_embed_grid_size=4), prefix=0),
    "timm Gemma 4 ViT": Example(
        language("Gemma4", head_dim=8, intermediate_size=48, position_embedding_size=64), prefix=0
    ),
    "torch.hub DINO": Example(lambda: lively(Hub(tells=True, classes=CLASSES))),
    "torch.hub DINOv2": Example(lambda: lively(Hub(registers=2, chunked=True, scaled=True)), prefix=3),
    "torch.hub linear classifier": Example(lambda: lively(LinearClassifier(Hub(scaled=True), CLASSES))),
}
# Every method is tried on these; they take the same pictures as the models of timm do.
THOROUGH = ("transformers DINOv2 with registers", "open_clip with prompts", "torch.hub DINO")


def example(name: str) -> nn.Module:
    torch.manual_seed(0)
    return FAMILIES[name].build()


def pictures(name: str, number: int = 2) -> Tensor:
    return torch.randn(number, 3, *FAMILIES[name].size, generator=torch.Generator().manual_seed(2))
