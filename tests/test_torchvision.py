"""torchvision's ViTs by name: weights, labels and preprocessing are those of its own presets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import example
from PIL import Image
from torchvision import models

from vit_explain import Explainer, list_models, load_model
from vit_explain.errors import ModelError
from vit_explain.image import prepare

NAMES = ("vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32")


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every architecture is a small one, of the size that the weights say, with random weights."""

    def build(name: str, weights: Any = None, **options: Any) -> torch.nn.Module:
        side, patch = 224 if weights is None else weights.meta["min_size"][0], int(name.rsplit("_", 1)[1])
        classes = options.get("num_classes", 1000)
        return models.VisionTransformer(side, patch, 1, 1, 8, 8, num_classes=classes)

    monkeypatch.setattr(models, "get_model", build)


def test_names():
    assert list_models("torchvision/vit_") == [f"torchvision/{name}" for name in NAMES]
    with pytest.raises(ModelError, match=r"near matches: .*torchvision/vit_b_16"):
        load_model("torchvision/vit_b_17")
    with pytest.raises(ModelError, match="no weights 'V9'; known: IMAGENET1K_V1"):
        load_model("torchvision/vit_b_16.V9")


@pytest.mark.parametrize(
    "name", [f"{name}.{tag}" for name in NAMES for tag in models.get_model_weights(name).__members__]
)
@pytest.mark.usefixtures("no_downloads")
def test_pictures_are_prepared_as_the_weights_say(name):
    explainer = Explainer(f"torchvision/{name}")
    architecture, tag = name.split(".")
    weights: Any = models.get_model_weights(architecture)
    weights = weights[tag]
    photo = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    picture = Image.fromarray(photo).resize((700, 602), Image.Resampling.BICUBIC)
    found, _ = prepare(picture, explainer.preprocessing)
    np.testing.assert_allclose(found, weights.transforms()(picture).numpy(), atol=1e-5)
    assert explainer.labels == weights.meta["categories"]
    assert explainer.model_name == f"torchvision/{architecture}"


@pytest.mark.usefixtures("no_downloads")
def test_checkpoints(tmp_path):
    state = models.VisionTransformer(224, 16, 1, 1, 8, 8, num_classes=7).state_dict()
    torch.save(state, tmp_path / "seven.pth")
    explainer = Explainer("torchvision/vit_b_16", checkpoint=tmp_path / "seven.pth")
    assert explainer.labels is None and explainer.family.classes(explainer.model) == 7
    assert all(torch.equal(value, state[name]) for name, value in explainer.model.state_dict().items())
    with pytest.raises(ModelError, match="do not fit"):
        load_model("torchvision/vit_b_32", checkpoint=tmp_path / "seven.pth")


def test_models_as_objects():
    explainer = Explainer(example("torchvision"))
    assert explainer.labels is None and explainer.preprocessing.size == (40, 40)
    assert explainer.preprocessing.resize == (45, 45)  # as much larger as 256 is than 224
    with pytest.raises(ModelError, match="torchvision's MaxVit is not supported"):
        Explainer(models.maxvit_t(input_size=(224, 224)))
