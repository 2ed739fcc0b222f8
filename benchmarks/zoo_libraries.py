"""The zoo's part about transformers and torchvision: a row a class of models, small and with random weights.

Of transformers every class below is built from its own configuration, made narrow and shallow, at the size of pictures
that is usual for it, and computes attention in each way there is; of its other image classifiers it is only asked
whether they are refused. torchvision's are built at full size, the larger ones without memory for their weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torchvision
import transformers
from torch import nn
from zoo_checks import Found, captured, checked

from vit_explain.errors import ModelError
from vit_explain.family import family_of
from vit_explain.prompts import Prompted

from families import PROMPTS, TEXT, Words  # isort: skip  tests, which zoo_checks makes importable

TITLE = "transformers and torchvision"
CLASSES = 10
NARROW: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
SWIN: dict[str, Any] = {"embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}
DETR: dict[str, Any] = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "d_model": 64,
    "backbone_config": {
        "model_type": "resnet",
        "hidden_sizes": [16, 16, 32, 32],
        "depths": [1, 1, 1, 1],
        "embedding_size": 16,
        "out_features": ["stage4"],
    },
}
TIMM: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"embed_dim": 48, "depth": 3, "num_heads": 3},
}
LARGEST = 100  # million parameters of torchvision's models whose numbers are checked


@dataclass(frozen=True)
class Class:
    """A class of transformers; ``options`` of its configuration, or of its image model's where it holds one."""

    name: str
    options: dict[str, Any] = field(default_factory=lambda: NARROW)
    attention: tuple[str, ...] = ("sdpa", "eager")
    texts: bool = False

    def build(self, attention: str) -> nn.Module:
        kind = getattr(transformers, self.name)
        config_kind, options = kind.config_class, dict(self.options)
        if "vision_config" in getattr(config_kind, "sub_configs", {}):
            text = {**TEXT, "projection_size": options.get("hidden_size")}
            config = config_kind(vision_config=options, text_config=text, num_labels=CLASSES)
        else:
            config = config_kind(**options, num_labels=CLASSES)
        config._attn_implementation = attention
        torch.manual_seed(0)
        model = kind(config).eval()
        return Prompted(model, PROMPTS, Words(TEXT["max_position_embeddings"], True)).eval() if self.texts else model


def classes(*names: str, **options: Any) -> list[Class]:
    return [Class(name, {**NARROW, **options}) for name in names]


TRANSFORMERS = [
    *classes("ViTModel", "ViTForImageClassification", "ViTMSNModel", "ViTMSNForImageClassification", "ViTMAEModel"),
    *classes("DeiTModel", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"),
    *classes("BeitModel", "BeitForImageClassification", use_relative_position_bias=True),
    *classes("Data2VecVisionModel", "Data2VecVisionForImageClassification", use_shared_relative_position_bias=True),
    *classes("Dinov2Model", "Dinov2ForImageClassification"),
    *classes("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification"),
    *classes("DINOv3ViTModel", num_register_tokens=4),
    *classes("IJepaModel", "IJepaForImageClassification"),
    Class("SwinModel", SWIN),
    Class("SwinForImageClassification", SWIN),
    Class("Swinv2Model", SWIN, ("eager",)),
    Class("Swinv2ForImageClassification", SWIN, ("eager",)),
    *classes("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPForImageClassification"),
    *classes("SiglipVisionModel", "SiglipForImageClassification"),
    Class("CLIPModel", NARROW, texts=True),
    Class("SiglipModel", NARROW, texts=True),
    *classes("Siglip2VisionModel", "Siglip2ForImageClassification"),
    Class("Siglip2Model", NARROW, texts=True),
    *classes("YolosForObjectDetection"),
    Class("DetrForObjectDetection", DETR, ("eager",)),
    Class("TimmWrapperModel", TIMM, ("sdpa",)),
    Class("TimmWrapperForImageClassification", TIMM, ("sdpa",)),
]


def of_class(one: Class) -> Found:
    """One row for all its ways to compute attention; ``numbers``: "ok" for all, or what failed."""
    found = Found(one.name, "transformers")
    wrong = []
    for attention in one.attention:
        try:
            model = one.build(attention)
            found = captured(model, one.name, f"transformers, {' and '.join(one.attention)}")
            if found.others:
                result = checked(model, attention=found.attention, near=0)
                wrong += [] if result == "ok" else [f"{attention}: {result}"]
        except ModelError as error:  # of an image-text model, as soon as it is given texts
            found.reason = str(error).replace(one.name, "it")
        except Exception as error:
            wrong.append(f"{attention}: {type(error).__name__}: {error}"[:200])
    found.numbers = "; ".join(wrong) or ("ok" if found.others else "")
    return found


def of_torchvision(name: str) -> Found:
    def build() -> nn.Module:
        return torchvision.models.get_model(name, weights=None).eval()

    with torch.device("meta"), torch.no_grad():
        found = captured(build(), name, "torchvision")
    if found.others and found.parameters <= LARGEST:
        torch.manual_seed(0)
        found.numbers = checked(build(), attention=found.attention, near=0)
    return found


def rows(libraries: dict[str, Callable[[], Iterator[Found]]]) -> list[Found]:
    found = []
    for one in (one for library in libraries.values() for one in library()):
        print(one.name, one.family, one.attention, one.reason[:100], one.numbers, flush=True)
        found.append(one)
    return found


LIBRARIES: dict[str, Callable[[], Iterator[Found]]] = {
    "transformers": lambda: map(of_class, TRANSFORMERS),
    "torchvision": lambda: map(of_torchvision, torchvision.models.list_models(include=["vit_*", "swin_*", "maxvit_*"])),
}


def refused() -> tuple[list[str], list[str]]:
    """Of transformers' other image classifiers, those that are refused, and those that are not."""
    known = {one.name for one in TRANSFORMERS}
    names = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values()
    others = {name for entry in names for name in ((entry,) if isinstance(entry, str) else entry)} - known
    answers: tuple[list[str], list[str]] = ([], [])
    for name in sorted(others):
        kind = getattr(transformers, name)
        try:
            with torch.device("meta"):
                family_of(kind(kind.config_class()))
        except ModelError:
            answers[0].append(name)
        except Exception as error:  # what cannot be built from nothing, or needs a package that is not here
            print(f"{name}: {type(error).__name__}: {str(error)[:100]}", flush=True)
        else:
            answers[1].append(name)
    return answers


def section(given: argparse.Namespace) -> str:
    """Run it; returns the text of this part."""
    found = rows(LIBRARIES)
    refusals, unseen = refused()
    lines = [
        f"transformers {transformers.__version__}, torchvision {torchvision.__version__}, torch {torch.__version__}. "
        "Models of transformers are made narrow and shallow, at their usual size of pictures, and compute attention "
        "in each of the ways that are named; torchvision's are whole.",
        "",
        "*attention*: whether attention calls are captured completely and lie where the family says. *numbers*: ok, or "
        f"what failed; blank where it was not run (torchvision, above {LARGEST} million parameters).",
        "",
        "| class or name | library | family | attention | gradients and perturbation | numbers | what is refused, and "
        "why |",
        "|---|---|---|---|---|---|---|",
    ]
    yes = {True: "yes", False: "no"}
    for one in found:
        lines.append(
            f"| {one.name} | {one.module} | {one.family} | {yes[one.attention]} | {yes[one.others]} | {one.numbers} | "
            f"{one.reason} |"
        )
    lines += ["", f"Other image classifiers of transformers, refused by name: {', '.join(refusals)}."]
    if unseen:
        lines += ["", f"Taken for one of the families above, but not checked: {', '.join(unseen)}."]
    return "\n".join(lines)
