"""Models of Hugging Face's transformers, by name or from a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .errors import ModelError, reason
from .hf_pictures import processing
from .image import Preprocessing
from .structure import pair, part
from .weights import load_weights, read_state

PREFIX = "hf/"
HEADS = ("classifier.weight", "cls_classifier.weight")
POOLER = "pooler."
SEEN = ("sdpa", "eager")  # ways to compute attention that can be intercepted
# These take texts as well, or leave out patches at random, or return something else than scores or one vector.
OTHERS = ("Masked", "SemanticSegmentation", "Backbone", "PreTraining", "Text")
SUPPORTED = (
    "transformers ViT, DeiT, ViT-MSN, BEiT, Data2Vec, DINOv2, DINOv3, I-JEPA, CLIP, SigLIP, Swin and Swin V2 image "
    "models"
)


class HuggingFace:
    """The answers of a family of transformers' image models that do not depend on its blocks."""

    def refuses(self, model: nn.Module) -> str | None:
        if not ours(model):
            return None
        return unfit(model) or f"transformers' {type(model).__name__} is not supported; supported: {SUPPORTED}"

    def check_visible(self, model: nn.Module) -> None:
        """``ModelError`` where attention is computed in a way that cannot be intercepted."""
        how = getattr(vision_of(model), "_attn_implementation", None) or SEEN[0]
        if how not in SEEN:
            raise ModelError(
                f"{self.name(model)} computes attention with {how}, which cannot be seen: call "
                f'model.set_attn_implementation("{SEEN[0]}") first'
            )

    def classes(self, model: nn.Module) -> int:
        head = head_of(model)
        return head.out_features if isinstance(head, nn.Linear) else 0

    def logits(self, output: Any) -> Tensor:
        return scores_of(output)

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        return processing(model, pair(vision_of(model).image_size))

    def labels(self, model: nn.Module) -> list[str] | None:
        return labels_of(model, self.classes(model))

    def name(self, model: nn.Module) -> str:
        return name_of(model)

    def names(self) -> list[str]:
        return []  # one family says it for all

    def load(self, name: str, checkpoint: Path | None) -> nn.Module:
        return from_hub(name, checkpoint)


def transformers_module() -> Any:
    """The transformers package; an error that says what to install where it is not there."""
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            f"models from Hugging Face need transformers ({reason(error)}): pip install 'vit-explain[hf]'"
        ) from error
    return transformers


def from_hub(name: str, checkpoint: Path | None) -> Any:
    """The model of the hub's name or the folder after ``hf/``, in eval mode.

    It is of the class that its configuration names; of encoders that drop patches in training (ViT-MAE), as a ViT.
    With ``checkpoint`` the configuration alone is read there, and the head is as wide as the file's.
    """
    transformers, source = transformers_module(), name.removeprefix(PREFIX)
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        kind = _class_of(transformers, config)
        if checkpoint is None:
            with _quiet(transformers):
                return _complete(*kind.from_pretrained(source, output_loading_info=True))
    except ModelError:
        raise
    except Exception as error:  # hubs, proxies and disks fail in many ways; all of them mean "no such model"
        raise ModelError(
            f"{source} could not be loaded from the hub or as a folder ({' '.join(str(error).split())[:300]})"
        ) from error
    state = read_state(checkpoint)
    rows = [len(state[head]) for head in HEADS if head in state]
    if rows and rows[0] != config.num_labels:
        config.num_labels = rows[0]
    return load_weights(kind(config), state, checkpoint, name)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without progress bars and tables of weights: what matters of them is said in words."""
    said = transformers.utils.logging
    level, bars = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity_error()
    said.disable_progress_bar()
    try:
        yield
    finally:
        said.set_verbosity(level)
        if bars:
            said.enable_progress_bar()


def _complete(model: Any, loaded: dict[str, Any]) -> Any:
    """The model in eval mode, where no weight is a random one; a pooler that nobody trained is left out."""
    missing = [name for name in loaded["missing_keys"] if not name.startswith(POOLER)]
    if missing:
        raise ModelError(
            f"{name_of(model)}: its files lack {len(missing)} weights of {type(model).__name__}, which would be "
            f"random: {', '.join(sorted(missing)[:3])}; save the whole model"
        )
    if loaded["missing_keys"]:
        model.pooler = None
    return model.eval()


def _class_of(transformers: Any, config: Any) -> Any:
    named = next(iter(config.architectures or ()), "")
    if config.model_type == "vit_mae":
        named = "ViTModel"
    if not hasattr(transformers, named):
        raise ModelError(f"{config._name_or_path}: its config.json names no class of transformers (architectures)")
    return getattr(transformers, named)


def ours(model: nn.Module) -> bool:
    """Whether a model is of one of transformers' classes, or of a class made of one."""
    return any(kind.__module__.startswith("transformers.models.") for kind in type(model).__mro__)


def packed(model: nn.Module) -> str | None:
    """Why one tensor of pixels is not what a model takes; None where it is."""
    if not ours(model) or not _class_name(model).startswith("Siglip2"):
        return None
    return (
        f"{_class_name(model)} takes pictures as lists of patches (NaFlex), each with a grid of its own, and not one "
        "tensor of pixels; SigLIP 2's checkpoints of one resolution are of the Siglip classes, and timm's "
        "naflexvit_base_patch16_siglip holds NaFlex weights: load one of them instead"
    )


def _class_name(model: nn.Module) -> str:
    return next(kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers.")).__name__


def unfit(model: nn.Module) -> str | None:
    """Why a model is neither a classifier nor an image encoder, by the name of its class; None where it may be one."""
    if (reason := packed(model)) is not None:
        return reason
    name = _class_name(model)
    if name.startswith("ViTMAE"):
        return (
            f"{name} leaves out patches at random, and has the others in random order; load its encoder "
            "as a ViT, which sees all of them: transformers.ViTModel.from_pretrained(...)"
        )
    if hasattr(model, "get_text_features"):
        return f'{name} compares pictures with texts: give texts=["a photo of a ..."] (--text)'
    if any(word in name for word in OTHERS):
        return f"{name} is neither a classifier nor an image encoder alone; load another class of its weights"
    return None


def type_of(model: nn.Module) -> str:
    """The type of model that its configuration names; '' for what is not of transformers, or is unfit."""
    fits = ours(model) and unfit(model) is None
    return getattr(getattr(model, "config", None), "model_type", "") if fits else ""


def vision_of(model: Any) -> Any:
    """The configuration of the image model."""
    return getattr(model.config, "vision_config", model.config)


def head_of(model: Any) -> Any:
    """The classifier; None where there is none."""
    return part(model, ("classifier", "cls_classifier"))[1]


def name_of(model: Any) -> str:
    """The hub's name or the folder's that the weights came from, or else the class."""
    source = model.config._name_or_path
    return Path(source).resolve().name if source and Path(source).exists() else source or type(model).__name__


def labels_of(model: Any, classes: int) -> list[str] | None:
    """The names in the configuration; None where classes have only the names that transformers makes up."""
    known = model.config.id2label or {}
    labels = [str(known.get(number, "")) for number in range(classes)]
    unknown = any(not label or re.fullmatch(r"LABEL_\d+", label) for label in labels)
    return None if unknown or not labels else labels


def scores_of(output: Any) -> Tensor:
    """(B, classes) of a classifier's output; of a model without a head the (B, D) vector it pools.

    Where it pools none, the mean of its tokens stands in, so that there is something to be checked.
    """
    if isinstance(output, tuple):  # of a model whose configuration says return_dict=False
        output = output[0]
    for name in ("logits", "image_embeds", "pooler_output"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor) and found.ndim == 2:
            return found
    tokens = getattr(output, "last_hidden_state", output)
    if not isinstance(tokens, Tensor) or tokens.ndim not in (2, 3):
        raise ModelError(f"the model returned {type(output).__name__}, which holds no (B, classes) scores")
    return tokens if tokens.ndim == 2 else tokens.mean(1)
