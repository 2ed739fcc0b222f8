"""Several attention calls on one input, and two branches of tokens: against explicit matrices over all tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from geometry import misplaced
from matrices import Full, accumulated, averaging, captured, positive, rolled_out, scattered, with_gradients
from small_models import lively
from timm.layers import DiffAttention
from timm.models import maxxvit as maxvit_code
from timm.models.crossvit import CrossVit
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitConvCfg, MaxxVitTransformerCfg
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelThingsBlock, VisionTransformer
from torch import Tensor, nn

from vit_explain import Explainer, list_models
from vit_explain.errors import ModelError
from vit_explain.layer import Layer

SIDE = (32, 48)
VIT: dict[str, Any] = {"img_size": SIDE, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 4}
GRID, TOKENS = (4, 6), 25
PARALLEL_MAXVIT = MaxxVitCfg(
    embed_dim=(16, 32),
    depths=(1, 1),
    block_type=("PM", "PM"),
    stem_width=8,
    conv_cfg=MaxxVitConvCfg(),
    transformer_cfg=MaxxVitTransformerCfg(dim_head=8, window_size=(2, 2), grid_size=(2, 2)),
)


def vit(layers: list[Layer]) -> list[Full]:
    means = [layer.attention()[0].mean(0) for layer in layers]
    return [((one + other) / 2, torch.eye(TOKENS), None) for one, other in zip(means[::2], means[1::2], strict=True)]


def maxvit(layers: list[Layer]) -> list[Full]:
    found: list[Full] = []
    calls = iter(layers)
    for grid in ((8, 12), (4, 6)):
        tokens = grid[0] * grid[1]
        image = torch.arange(tokens).view(1, *grid, 1)
        full = torch.zeros(tokens, tokens)
        for partition in (maxvit_code.window_partition, maxvit_code.grid_partition):
            windows = partition(image, [2, 2]).flatten(1)
            full += scattered(next(calls).attention(), windows, windows, tokens, tokens) / 2
        found.append((full, torch.eye(tokens), averaging((8, 12), 2) if found else None))
    return found


def crossvit(layers: list[Layer]) -> list[Full]:
    """Tokens: the class token and 9x6 patches of one branch, then those of the other with 6x4."""
    fine, coarse, tokens = 1 + 54, 1 + 24, 55 + 25
    numbers = torch.arange(tokens)
    own = numbers[None, :fine], numbers[None, fine:]
    crossed = torch.cat([own[0][:, :1], own[1][:, 1:]], 1), torch.cat([own[1][:, :1], own[0][:, 1:]], 1)
    assert crossed[0].shape[1] == coarse and crossed[1].shape[1] == fine
    block = [(own[0], own[0]), (own[1], own[1]), (own[1], own[1])]
    block += [(own[0][:, :1], crossed[0]), (own[1][:, :1], crossed[1])]
    return [
        (scattered(layer.attention(), queries, keys, tokens, tokens), torch.eye(tokens), None)
        for layer, (queries, keys) in zip(layers, 2 * block, strict=True)
    ]


def on_the_grid(row: np.ndarray) -> np.ndarray:
    """What patches of both of CrossViT's branches got, on the grid of the smaller ones."""
    coarse = np.kron(row[56:].reshape(4, 6), np.ones((3, 3))) / 9  # 12x18, of which both grids are made
    return row[1:55] + coarse.reshape(6, 2, 9, 2).sum((1, 3)).ravel()


MODELS: dict[str, Any] = {
    "parallel vit": (lambda: VisionTransformer(**VIT, block_fn=ParallelThingsBlock), vit, [0], lambda row: row[1:]),
    "parallel vit, mean of patches": (
        lambda: VisionTransformer(**VIT, block_fn=ParallelThingsBlock, global_pool="avg"), vit, range(1, TOKENS),
        lambda row: row[1:],
    ),
    "parallel maxvit": (
        lambda: MaxxVit(PARALLEL_MAXVIT, img_size=SIDE, num_classes=4), maxvit, range(24), lambda row: row
    ),
    "crossvit": (
        lambda: CrossVit(
            img_size=(48, 72), img_scale=(1.0, 2 / 3), patch_size=(8, 8), embed_dim=(16, 24), num_heads=(2, 3),
            depth=((1, 2, 0), (1, 2, 0)), mlp_ratio=(2, 2, 1), num_classes=4,
        ),
        crossvit, [0, 55], on_the_grid,
    ),
}  # fmt: skip


def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    size = (48, 72) if name == "crossvit" else SIDE
    return lively(MODELS[name][0]()), torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))


def read(parts: list[Full], tokens: Any) -> np.ndarray:
    row = np.zeros(len(parts[-1][0]))
    row[list(tokens)] = 1 / len(tokens)
    return row


@pytest.mark.parametrize("name", MODELS)
def test_rollout_is_the_product_of_explicit_matrices(name):
    _, parts_of, tokens, on_grid = MODELS[name]
    model, pixels = built(name)
    found = Explainer(model).explain(pixels, "rollout").relevance
    for image in range(2):
        parts = parts_of(captured(model, pixels[image : image + 1]))
        row = on_grid(rolled_out(parts, read(parts, tokens)))
        np.testing.assert_allclose(found[image].ravel(), row, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_rollout_and_gae_are_products_of_explicit_matrices(name):
    _, parts_of, tokens, on_grid = MODELS[name]
    model, pixels = built(name)
    pixels = pixels[:1]
    with torch.enable_grad():
        layers = with_gradients(model, pixels, 2).layers
    parts = parts_of([positive(layer) for layer in layers])
    gained = on_grid(accumulated(parts, read(parts, tokens)))
    found = Explainer(model).explain(pixels, "gae", 2).relevance[0]
    assert found.any()
    np.testing.assert_allclose(found.ravel(), gained, rtol=1e-3, atol=1e-5 * gained.max())
    # Heads are fused before negatives go.
    parts = parts_of([fused(layer) for layer in layers])
    row = on_grid(rolled_out(parts, read(parts, tokens)))
    found = Explainer(model).explain(pixels, "gradient_rollout", 2).relevance[0]
    np.testing.assert_allclose(found.ravel(), row, rtol=1e-3, atol=1e-6 * row.max())


def fused(layer: Layer) -> Layer:
    """A call of one head with ``max(mean_h(A ⊙ ∂y/∂A), 0)``."""
    values = (layer.attention() * layer.attention_gradient()).mean(1, keepdim=True).clamp(min=0)
    return Layer(1.0, probabilities=values, place=layer.place)


@pytest.mark.parametrize("name", MODELS)
def test_discarding_works_on_each_call_alone(name):
    model, pixels = built(name)
    explainer = Explainer(model)
    kept = explainer.explain(pixels, "rollout", discard_ratio=0.0).relevance
    some = explainer.explain(pixels, "rollout", discard_ratio=0.5).relevance
    assert np.isfinite(some).all() and np.abs(some - kept).max() > 0
    alone = explainer.explain(pixels[1:], "rollout", discard_ratio=0.5).relevance[0]
    np.testing.assert_allclose(alone, some[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("cell", ((0, 0), (1, 4), (3, 5)))
@pytest.mark.parametrize("name", MODELS)
def test_values_change_where_the_picture_does(name, cell):
    torch.manual_seed(0)
    size = (48, 72) if name == "crossvit" else SIDE
    assert misplaced(MODELS[name][0]().eval(), size, cell, near=0 if "vit" in name.split() else 1) == []


def test_class_tokens_of_crossvit_are_read_alike():
    model, pixels = built("crossvit")
    trace = with_gradients(model, pixels, 1)
    assert trace.read_row()[0].nonzero().flatten().tolist() == [0, 55]
    found = Explainer(model).explain(pixels, "gradcam", 1).relevance
    assert found.shape == (2, 6, 9) and np.isfinite(found).all()


@pytest.mark.parametrize("kind", ({"attn_layer": DiffAttention}, {"block_fn": DiffParallelScalingBlock}))
def test_differences_of_two_softmaxes_are_refused_and_the_other_methods_go_on(kind):
    torch.manual_seed(0)
    model = lively(VisionTransformer(**{**VIT, "num_heads": 2, "embed_dim": 32}, **kind))
    explainer, pixels = Explainer(model), torch.randn(1, 3, *SIDE)
    for method, target in (("rollout", None), ("gae", 1), ("attention", None), ("alti", None)):
        with pytest.raises(ModelError, match=r"the difference of two softmaxes.*use a gradient, class activation map"):
            explainer.explain(pixels, method, target)
    assert explainer.explain(pixels, "gradcam", 1).relevance.shape == (1, *GRID)
    assert explainer.explain(pixels, "saliency", 1).relevance.shape == (1, *GRID)


def test_names():
    assert list_models("18x2") == ["vit_base_patch16_18x2_224", "vit_small_patch16_18x2_224"]
    assert list_models("vit_dlittle_*") and list_models("maxvit_tiny_pm_256") and list_models("crossvit_9_240")
    names = list_models()
    assert len(names) == len(set(names))
