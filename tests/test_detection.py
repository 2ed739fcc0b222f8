"""Object detectors: gradients and perturbation of one query's score; no attention methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_models import SIZE, lively
from torch import Tensor, nn

from vit_explain import Explainer
from vit_explain.errors import ModelError, VitExplainError

transformers = pytest.importorskip("transformers")
QUERY, CLASS = 2, 1
SIZES = {"num_queries": 5, "d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "dropout": 0.0}  # fmt: skip
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1],
          "out_features": ["stage4"]}  # fmt: skip

NO_WEIGHTS: dict[str, Any] = {
    "use_pretrained_backbone": False,
    "backbone": None,
}  # version 4 of transformers asks for some


def detr() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.DetrConfig(
        **SIZES, num_labels=3, backbone_config=dict(RESNET), use_timm_backbone=False, **NO_WEIGHTS
    )
    return transformers.DetrForObjectDetection(config).eval()


def yolos() -> nn.Module:
    config = transformers.YolosConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=list(SIZE),
        patch_size=8, num_detection_tokens=5, num_labels=3,
    )  # fmt: skip
    return lively(transformers.YolosForObjectDetection(config))


# (model, size of pictures, grid)
DETECTORS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], tuple[int, int]]] = {
    "DETR": (detr, (96, 130), (3, 5)),
    "YOLOS": (yolos, SIZE, (3, 5)),
}
every_detector = pytest.mark.parametrize("name", DETECTORS)


def query(output: Any) -> Tensor:
    return output.logits[:, QUERY, CLASS]


def detector(name: str) -> tuple[Explainer, Tensor]:
    build, size, _ = DETECTORS[name]
    return Explainer(build()), torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))


@every_detector
def test_one_querys_score(name):
    explainer, pixels = detector(name)
    leaf = pixels.clone().requires_grad_()
    (expected,) = torch.autograd.grad(query(explainer.model(leaf)).sum(), leaf)
    found = explainer.explain(pixels, "input_x_gradient", query, level="pixels").relevance
    wanted = (pixels * expected).sum(1).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    _, _, grid = DETECTORS[name]
    for method, options in (("occlusion", {}), ("kernel_shap", {"players": 2, "samples": 8})):
        explained = explainer.explain(pixels, method, query, **options)
        assert np.isfinite(explained.relevance).all() and explained.relevance.any()
        assert explained.heatmap().shape[1:] == tuple(pixels.shape[2:])
    assert explainer.family.anatomy(explainer.model, (3, *pixels.shape[2:])).grid == grid


@every_detector
@pytest.mark.parametrize("method", ["rollout", "gae", "alti", "attn_lrp"])
def test_attention_methods_are_refused(name, method):
    explainer, pixels = detector(name)
    target = None if method in ("rollout", "alti") else query
    with pytest.raises(ModelError, match=r"use a gradient.* or perturbation method"):
        explainer.explain(pixels, method, target)


def test_class_activation_maps():
    explainer, pixels = detector("DETR")
    assert explainer.explain(pixels, "gradcam", query).relevance.shape == (2, 3, 5)
    explainer, pixels = detector("YOLOS")
    with pytest.raises(ModelError, match="finds no vector a patch; use a gradient or perturbation method"):
        explainer.explain(pixels, "gradcam", query)


@every_detector
def test_a_class_alone_says_not_which_query(name):
    explainer, pixels = detector(name)
    with pytest.raises(VitExplainError, match="no classifier head") as caught:
        explainer.explain(pixels, "saliency", CLASS)
    assert "\n" not in str(caught.value)


def test_bare_models_are_refused():
    with pytest.raises(ModelError, match="YolosModel is not supported"):
        Explainer(transformers.YolosModel(yolos().config))  # type: ignore[union-attr]
