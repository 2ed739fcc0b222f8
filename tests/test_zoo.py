"""Every name the package offers, at full depth and size, without weights: what is captured fits the family's words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from vit_explain import list_models
from vit_explain.capture import look
from vit_explain.family import family_of
from vit_explain.layer import Layer
from vit_explain.matching import match

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))


def captured(name: str) -> tuple[Any, tuple[int, int], list[Layer], Any]:
    """The model without weights, its input size, the attention calls that were seen, and its output."""
    with torch.device("meta"), torch.no_grad():
        model = timm.create_model(name, pretrained=False).eval()
        size = family_of(model).preprocessing(model).size
        seen = look(model, torch.empty(1, 3, *size), {"attention"})
    return model, size, seen.layers, seen.output


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_models() if "/" not in name and name != "bundled"])
def test_every_name_is_captured_completely(name):
    model, size, layers, output = captured(name)
    family = family_of(model)
    anatomy = family.anatomy(model, (3, *size))
    if anatomy.plan is not None and not anatomy.plan.places:
        return  # no method reads its attention
    if anatomy.plan is not None:
        assert len(match(layers, anatomy)[0]) == len([place for place in anatomy.plan.places if place is not None])
        return
    blocks, pool = match(layers, anatomy)
    assert len(blocks) == len(anatomy.blocks)
    assert (pool is not None) == anatomy.readout.attention
    assert anatomy.covers[0] <= size[0] and anatomy.covers[1] <= size[1]
    assert family.classes(model) in (0, family.logits(output).shape[1])


# One a family that only the zoo builds at its usual size of pictures, or whose answers depend on the class.
LIBRARY_CLASSES = ("ViTModel", "IJepaForImageClassification", "SwinModel", "Swinv2ForImageClassification", "CLIPModel")


@pytest.mark.parametrize("name", LIBRARY_CLASSES)
def test_classes_of_transformers_at_their_usual_size(name):
    pytest.importorskip("transformers")
    from zoo_libraries import TRANSFORMERS, of_class

    found = of_class(next(one for one in TRANSFORMERS if one.name == name))
    assert found.attention and found.numbers == "ok", found


@pytest.mark.parametrize("name", ["swin_t", "swin_v2_t", "vit_b_16"])
def test_names_of_torchvision_are_captured_completely(name):
    models = pytest.importorskip("torchvision").models
    from zoo_checks import captured as found_in

    with torch.device("meta"):
        assert found_in(models.get_model(name).eval(), name, "torchvision").attention


def test_the_zoo_writes_its_parts_apart():
    from zoo import HEAD, PARTS, merged

    timm_title, other = (title for title, _ in PARTS.values())
    both = merged(merged("", {other: "| b |"}), {timm_title: "| a |"})
    assert both == f"{HEAD}\n## {timm_title}\n\n| a |\n\n## {other}\n\n| b |\n"
    assert merged(both, {other: "| c |"}) == both.replace("| b |", "| c |")
