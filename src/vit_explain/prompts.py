"""Texts as classes: an image-text model and some prompts together give one score a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ModelError, TargetError
from .huggingface import packed, transformers_module
from .modules import evaluation_mode

Tokenizer = Callable[..., Any]
HF_TEXTS, OPEN_CLIP_TEXTS = "get_text_features", "encode_text"
# Tokenizers of models that do not say which is theirs, where they were loaded by name.
TOKENIZERS: WeakKeyDictionary[nn.Module, Tokenizer] = WeakKeyDictionary()


class Prompted(nn.Module):
    """``scale · cos(image, text) + bias``, (B, prompts): how well pictures match each prompt, by the model's measure.

    ``model``: CLIP- or SigLIP-like, of transformers or open_clip; it is held, not changed. ``tokenizer``: its own, by
    default the one whose files lie beside its weights. The prompts' features are computed once, here.
    """

    features: Tensor  # (prompts, D) of length one

    def __init__(self, model: nn.Module, prompts: Sequence[str], tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.prompts = _checked(prompts)
        if (reason := packed(model)) is not None:
            raise ModelError(reason)
        if not compares(model):
            raise ModelError(f"{type(model).__name__} does not compare pictures with texts: leave the texts out")
        tokenizer = tokenizer or TOKENIZERS.get(model) or _tokenizer_of(model)
        with evaluation_mode(model), torch.inference_mode(False), torch.no_grad():
            features = F.normalize(_text_features(model, tokenizer, self.prompts).float(), dim=-1)
        self.model = model
        self.training = model.training
        self.register_buffer("features", features)

    def forward(self, pixels: Tensor) -> Tensor:
        model: Any = self.model
        found = model.get_image_features(pixels) if hasattr(model, HF_TEXTS) else model.encode_image(pixels)
        images = F.normalize(_vector(found), dim=-1)
        scores = images @ self.features.to(images.dtype).T * model.logit_scale.exp()
        bias = getattr(model, "logit_bias", None)
        return scores if bias is None else scores + bias


def compares(model: nn.Module) -> bool:
    """Whether a model compares pictures with texts."""
    return hasattr(model, HF_TEXTS) or hasattr(model, OPEN_CLIP_TEXTS)


def _checked(prompts: Sequence[str]) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise TargetError("texts must be one or more prompts that are not empty")
    if len(set(texts)) != len(texts):
        raise TargetError("texts holds the same prompt twice")
    return texts


def _tokenizer_of(model: Any) -> Tokenizer:
    source = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not source:
        raise ModelError(
            f"{type(model).__name__} does not say which tokenizer it was trained with: give it with tokenizer="
        )
    try:
        tokenizer = transformers_module().AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ModelError(
            f"no tokenizer was found for {source} ({' '.join(str(error).split())[:200]}): give one with tokenizer="
        ) from error
    # Where there are no files, transformers may make a tokenizer that knows no words.
    known, wanted = len(tokenizer), model.config.text_config.vocab_size
    if known < wanted // 2:
        raise ModelError(
            f"no tokenizer was found for {source} (one knows {known} tokens, the model {wanted}): "
            "give one with tokenizer="
        )
    return tokenizer


def _text_features(model: Any, tokenizer: Tokenizer, prompts: list[str]) -> Tensor:
    device = next(model.parameters()).device
    if not hasattr(model, HF_TEXTS):
        return model.encode_text(tokenizer(prompts).to(device))
    # SigLIP was trained on texts filled up to this length; CLIP reads no further than a text's end.
    longest = model.config.text_config.max_position_embeddings
    tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt")
    return _vector(model.get_text_features(**{name: value.to(device) for name, value in tokens.items()}))


def _vector(output: Any) -> Tensor:
    """(rows, D) of what versions of transformers return it as."""
    return output if isinstance(output, Tensor) else output.pooler_output
