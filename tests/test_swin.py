"""Swin Transformers of transformers and torchvision: grids that windows do not divide, sizes, names, refusals.

``test_layouts`` has them on grids that windows divide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from geometry import looked, misplaced
from small_models import lively
from swin_models import SWINS, calm, full_matrices
from torch import nn
from torchvision import models

from vit_explain import Explainer, list_models
from vit_explain.errors import ModelError

ODD, GRID = (28, 36), (7, 9)  # windows of two and merging by two are both padded
every_swin = pytest.mark.parametrize("name", SWINS)


def odd(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return lively(SWINS[name](ODD)), torch.randn(1, 3, *ODD, generator=torch.Generator().manual_seed(3))


@every_swin
@pytest.mark.parametrize("cell", ((0, 0), (1, 2), (3, 4)))
def test_values_change_where_the_picture_does_on_padded_grids(name, cell):
    torch.manual_seed(0)
    assert misplaced(calm(SWINS[name](ODD)), ODD, cell) == []


@every_swin
def test_rollout_on_padded_grids_is_the_product_of_explicit_matrices(name):
    """What padding gets is lost; no other token gets it."""
    model, pixels = odd(name)
    found = Explainer(model).explain(pixels, "rollout").relevance[0]
    with torch.no_grad():
        matrices = full_matrices([layer.attention() for layer in looked(model, pixels).layers], GRID)
    last = len(matrices[-1][0])
    row = np.full(last, 1 / last)
    for attention, merge in reversed(matrices):
        whole = attention.numpy().astype(np.float64)
        row = row @ ((whole[:, :-1] + np.eye(len(whole))) / (whole.sum(1, keepdims=True) + 1))
        if merge is not None:
            row = row @ merge.numpy()
    assert found.shape == GRID and 0 < found.sum() < 1
    np.testing.assert_allclose(found.ravel(), row, rtol=1e-4, atol=1e-7)


def test_sdpa_and_eager_have_one_map():
    pixels = torch.randn(2, 3, *ODD)
    for method, target in (("rollout", None), ("gradient_rollout", 1), ("gae", 1)):
        one, other = (
            Explainer(odd(name)[0]).attribute(pixels, target, method)
            for name in ("transformers swin", "transformers swin, eager")
        )
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(one.abs().max()))


@every_swin
def test_pictures_of_other_sizes(name):
    """Their positions are relative, so pictures may have other sizes; the libraries pad or cut pictures differently."""
    model, _ = odd(name)
    found = Explainer(model).explain(torch.randn(1, 3, 34, 42), "gae", 1)
    h, w = (8, 10) if "torchvision" in name else (9, 11)
    assert found.relevance.shape == (1, h, w) and found.heatmap().shape[1:] == (34, 42)


@pytest.mark.parametrize("name", ["transformers swin, eager", "transformers swin v2"])
def test_models_without_a_head(name):
    transformers = pytest.importorskip("transformers")
    config: Any = SWINS[name](ODD).config
    kind = "SwinModel" if config.model_type == "swin" else "Swinv2Model"
    explainer = Explainer(lively(getattr(transformers, kind)(config)))
    pixels = torch.randn(1, 3, *ODD)
    assert explainer.family.classes(explainer.model) == 0
    for method in ("rollout", "gradcam", "saliency"):
        target = None if method == "rollout" else lambda output: output.pooler_output[:, 0]
        assert np.isfinite(explainer.explain(pixels, method, target).relevance).all()


def test_a_folder_is_a_model(tmp_path):
    model: Any = odd("transformers swin v2")[0]
    model.config.id2label = {number: f"name {number}" for number in range(4)}
    model.save_pretrained(tmp_path / "tuned")
    explainer, pixels = Explainer(str(tmp_path / "tuned")), torch.randn(1, 3, *ODD)
    assert explainer.labels == [f"name {number}" for number in range(4)] and explainer.preprocessing.size == ODD
    expected = Explainer(model).attribute(pixels, 1, "gae")
    torch.testing.assert_close(explainer.attribute(pixels, 1, "gae"), expected)


def test_refusals():
    transformers = pytest.importorskip("transformers")
    config: Any = SWINS["transformers swin, eager"](ODD).config
    with pytest.raises(ModelError, match=r"windows of 2x2 tokens, which do not fit a grid of 1x9: give larger"):
        Explainer(SWINS["transformers swin, eager"](ODD).eval()).explain(torch.randn(1, 3, 4, 36))
    with pytest.raises(ModelError, match="has patches of 4x4 pixels"):
        Explainer(SWINS["torchvision swin"](ODD).eval()).explain(torch.randn(1, 3, 3, 28))
    with pytest.raises(ModelError, match="takes 3 channels"):
        Explainer(SWINS["torchvision swin"](ODD).eval()).explain(torch.randn(1, 1, *ODD))
    config.use_absolute_embeddings = True
    with pytest.raises(ModelError, match="takes 28x36 pixels"):
        Explainer(transformers.SwinModel(config).eval()).explain(torch.randn(1, 3, 28, 28))
    with pytest.raises(ModelError, match="neither a classifier nor an image encoder"):
        Explainer(transformers.SwinForMaskedImageModeling(config))
    with pytest.raises(ModelError, match="torchvision's ResNet is not supported; supported: torchvision vit_"):
        Explainer(models.resnet18())


def test_names_and_presets():
    names = ("swin_b", "swin_s", "swin_t", "swin_v2_b", "swin_v2_s", "swin_v2_t")
    assert list_models("torchvision/swin") == [f"torchvision/{name}" for name in names]
    for build, weights in (
        (models.swin_t, models.Swin_T_Weights.IMAGENET1K_V1),
        (models.swin_v2_t, models.Swin_V2_T_Weights.IMAGENET1K_V1),
    ):
        explainer, preset = Explainer(build()), weights.transforms()
        assert explainer.labels == weights.meta["categories"]
        assert explainer.preprocessing.size == (preset.crop_size[0],) * 2
        assert explainer.preprocessing.resize == (preset.resize_size[0],) * 2
        assert explainer.preprocessing.interpolation == preset.interpolation.value
