"""Attention after convolutions, among pooled tokens, beside attention between channels: placed, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from geometry import misplaced, stilled
from matrices import Full, accumulated, averaging, captured, positive, rolled_out, scattered, with_gradients
from small_models import lively
from timm.models.davit import DaVit
from timm.models.efficientformer import EfficientFormer
from timm.models.gcvit import GlobalContextVit
from timm.models.hieradet_sam2 import HieraDet
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from timm.models.nest import Nest
from timm.models.tiny_vit import TinyVit
from timm.models.xcit import Xcit
from torch import Tensor, nn

from vit_explain import Explainer, list_models
from vit_explain.errors import ModelError
from vit_explain.family import family_of
from vit_explain.layer import Layer
from vit_explain.layouts import merging, overlaps, whole

CAFORMER: dict[str, Any] = {
    "token_mixers": [SepConv, SepConv, Attention, Attention],
    "norm_layers": [LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2,
}
# Smallest of their kind, shortened where they can be.
PLACED: dict[str, Callable[[], nn.Module]] = {
    "xcit, 16": lambda: timm.create_model("xcit_nano_12_p16_224", depth=2, embed_dim=64),
    "xcit, 8": lambda: timm.create_model("xcit_nano_12_p8_224", depth=1, embed_dim=32, num_heads=2),
    "davit": lambda: DaVit(depths=(1, 1, 1, 1), embed_dims=(12, 24, 36, 48), num_heads=(1, 2, 3, 4)),
    "davit, channels first": lambda: DaVit(
        depths=(1, 2), embed_dims=(12, 24), num_heads=(1, 2), attn_types=("channel", "spatial"), down_kernel_size=3
    ),
    "tiny vit": lambda: TinyVit(depths=(1, 1, 2, 1), embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4)),
    "gcvit": lambda: GlobalContextVit(depths=(2, 2, 2, 2), embed_dim=16),
    "fastvit": lambda: timm.create_model("fastvit_sa12", layers=(1, 1, 1, 2), embed_dims=(16, 32, 64, 128)),
    "mobileclip": lambda: timm.create_model("fastvit_mci1", layers=(1, 1, 1, 2), embed_dims=(16, 32, 64, 128)),
    "caformer": lambda: MetaFormer(depths=(1, 1, 2, 2), dims=(16, 32, 64, 96), **CAFORMER),
    "efficientformer": lambda: EfficientFormer(depths=(1, 1, 1, 3), embed_dims=(16, 24, 32, 48), num_vit=2),
    "visformer": lambda: timm.create_model(
        "visformer_tiny", embed_dim=48, depth=(1, 2, 2), num_heads=2, init_channels=8
    ),
    "next-vit": lambda: timm.create_model("nextvit_small", depths=(1, 1, 5, 1)),
    "nest": lambda: Nest(depths=(1, 1, 2), embed_dims=(24, 36, 48), num_heads=(2, 3, 4)),
    "mobilevit": lambda: timm.create_model("mobilevit_xxs"),
    "hiera of SAM 2": lambda: HieraDet(
        stages=(1, 2, 2, 1), embed_dim=24, window_spec=(8, 4, 14, 7), global_att_blocks=(2, 4)
    ),
}
REFUSED = {
    "edgenext_xx_small": "between channels",
    "efficientvit_b0": "linear",
    "coat_lite_tiny": "linear",
    "coat_tiny": "linear",
    "swiftformer_xs": "weighs all tokens into one",
    "mobilevitv2_050": "weighs all tokens into one",
}


@pytest.fixture(params=PLACED)
def placed(request: Any) -> tuple[nn.Module, tuple[int, int]]:
    torch.manual_seed(0)
    model = PLACED[request.param]().eval()
    return model, Explainer(model).preprocessing.size


def test_values_change_where_the_picture_does(placed):
    model, size = placed
    h, w = Explainer(model).family.anatomy(model, (3, *size)).grid
    for cell in ((h // 3, w // 2), (h - 2, 1)):
        assert misplaced(model, size, cell, near=1) == []
    stilled(model)
    for cell in ((h // 3, w // 2), (h - 2, 1), (0, w - 1)):
        assert misplaced(model, size, cell, near=int(isinstance(model, Nest))) == []  # its pools overlap


def test_maps_of_a_batch_are_those_of_single_images(placed):
    model, size = placed
    explainer, pixels = Explainer(model), torch.randn(2, 3, *size)
    for method, target in (("rollout", None), ("gradient_rollout", 1), ("gae", 1), ("attention", None), ("gradcam", 1)):
        maps = explainer.attribute(pixels, target, method)
        assert maps.isfinite().all()
        alone = explainer.attribute(pixels[1:], target, method)
        torch.testing.assert_close(maps[1:], alone, rtol=1e-3, atol=1e-3 * float(maps.abs().max()))


def squares(grid: tuple[int, int], side: int) -> Tensor:
    image = torch.arange(grid[0] * grid[1]).view(grid)
    return torch.stack(
        [image[r : r + side, c : c + side].flatten() for r in range(0, grid[0], side) for c in range(0, grid[1], side)]
    )


def hieradet(layers: list[Layer]) -> list[Full]:
    first, pooled, last = layers
    inside, all_tokens = squares((8, 12), 4), torch.arange(24)[None]
    return [
        (scattered(first.attention(), inside, inside, 96, 96), torch.eye(96), None),
        (scattered(pooled.attention(), squares((4, 6), 2), inside, 24, 96), averaging((8, 12), 2), None),
        (scattered(last.attention(), all_tokens, all_tokens, 24, 24), torch.eye(24), None),
    ]


def runs(tokens: int, together: int) -> Tensor:
    """(means, tokens): each the mean of so many neighbours in a row."""
    found = torch.zeros(tokens // together, tokens)
    for mean in range(len(found)):
        found[mean, mean * together : (mean + 1) * together] = 1 / together
    return found


def nextvit(layers: list[Layer]) -> list[Full]:
    first, second, third = (layer.attention()[0].mean(0) for layer in layers)
    return [
        (first @ runs(96, 16), torch.eye(96), None),
        (second @ runs(24, 4), torch.eye(24), averaging((8, 12), 2)),
        (third, torch.eye(6), averaging((4, 6), 2)),
    ]


def mobilevit(layers: list[Layer]) -> list[Full]:
    found: list[Full] = []
    calls, grid = iter(layers), (8, 16)
    for depth in (2, 4, 3):
        merge = averaging((2 * grid[0], 2 * grid[1]), 2) if found else None
        tokens = torch.arange(grid[0] * grid[1]).view(grid)
        alike = torch.stack([tokens[r::2, c::2].flatten() for r in range(2) for c in range(2)])
        for _ in range(depth):
            full = scattered(next(calls).attention(), alike, alike, tokens.numel(), tokens.numel())
            found.append((full, torch.eye(tokens.numel()), merge))
            merge = None
        grid = grid[0] // 2, grid[1] // 2
    return found


EXPLICIT: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], Callable[[list[Layer]], list[Full]]]] = {
    "hiera of SAM 2": (
        lambda: lively(
            HieraDet(
                embed_dim=8, num_heads=1, stages=(1, 2), q_pool=1, window_spec=(4, 2), global_att_blocks=(2,),
                num_classes=4,
            )
        ),
        (32, 48),
        hieradet,
    ),
    "next-vit": (lambda: timm.create_model("nextvit_small", depths=(1, 1, 5, 1)).eval(), (64, 96), nextvit),
    "mobilevit": (lambda: timm.create_model("mobilevit_xxs").eval(), (64, 128), mobilevit),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPLICIT)
def test_maps_are_products_of_explicit_matrices(name):
    build, size, parts_of = EXPLICIT[name]
    torch.manual_seed(0)
    model = build()
    pixels = torch.randn(1, 3, *size)
    found = Explainer(model).explain(pixels, "rollout").relevance[0]
    parts = parts_of(captured(model, pixels))
    last = len(parts[-1][0])
    row = rolled_out(parts, np.full(last, 1 / last))
    np.testing.assert_allclose(found.ravel(), row, rtol=1e-4, atol=1e-7)
    found = Explainer(model).explain(pixels, "gae", 2).relevance[0]
    with torch.enable_grad():
        trace = with_gradients(model, pixels, 2)
    gained = accumulated(parts_of([positive(layer) for layer in trace.layers]), np.full(last, 1 / last))
    assert found.any()
    np.testing.assert_allclose(found.ravel(), gained, rtol=1e-3, atol=1e-5 * gained.max())


@pytest.mark.parametrize("fused", (False, True))
def test_attention_between_channels_is_not_taken_for_that_between_tokens(fused):
    """XCiT with as many channels a head as it has tokens; only its class attention counts."""
    torch.manual_seed(0)
    model: Any = lively(Xcit(img_size=(64, 96), embed_dim=50, depth=2, num_heads=2, num_classes=4))
    for block in model.blocks:
        block.attn.fused_attn = fused
    pixels = torch.randn(1, 3, 64, 96)
    layers = captured(model, pixels)
    assert [layer.shape for layer in layers] == [(1, 2, 1, 25)] * 2
    row = np.eye(1, 25)[0]
    for layer in reversed(layers):
        row[1:] += row[0] / 2 * layer.attention()[0].mean((0, 1))[1:].numpy()
        row[0] *= (1 + float(layer.attention()[0].mean((0, 1))[0])) / 2
    found = Explainer(model).explain(pixels, "rollout").relevance
    np.testing.assert_allclose(found.ravel(), row[1:], rtol=1e-5)
    with pytest.raises(ModelError, match=r"attention between channels, which attention methods do not see"):
        Explainer(model).explain(pixels, "alti")


@pytest.mark.parametrize("method", ("saliency", "input_x_gradient"))
def test_gradients_behind_batch_normalisation_are_those_of_a_batch(method):
    """One image's would be wrong by a half, were PyTorch left alone with it."""
    torch.manual_seed(0)
    explainer = Explainer(Xcit(img_size=(64, 96), embed_dim=32, depth=2, num_heads=2, num_classes=4).eval())
    pixels = torch.randn(2, 3, 64, 96)
    maps = explainer.attribute(pixels, 1, method)
    alone = explainer.attribute(pixels[1:], 1, method)
    torch.testing.assert_close(alone, maps[1:], rtol=1e-3, atol=1e-4 * float(maps.abs().max()))


def test_xcit_that_reads_patches_has_no_attention_to_read():
    model = lively(Xcit(img_size=(64, 96), embed_dim=32, depth=2, num_heads=2, num_classes=4, global_pool="avg"))
    with pytest.raises(ModelError, match="has no attention between tokens to read"):
        Explainer(model).explain(torch.randn(1, 3, 64, 96), "rollout")
    assert Explainer(model).explain(torch.randn(1, 3, 64, 96), "gradcam", 1).relevance.shape == (1, 4, 6)


@pytest.mark.parametrize("name", REFUSED)
def test_attention_without_a_matrix_is_refused_by_name_and_the_others_go_on(name):
    explainer = Explainer(timm.create_model(name).eval())
    pixels = torch.randn(1, 3, *explainer.preprocessing.size)
    for method, target in (("rollout", None), ("gae", 1), ("attention", None)):
        with pytest.raises(ModelError, match=f"{name} .*{REFUSED[name]}.*use a gradient, class activation map"):
            explainer.explain(pixels, method, target)
    for method in ("saliency", "gradcam"):
        found = explainer.explain(pixels, method, 1).relevance
        assert np.isfinite(found).all() and found.std() > 0


def test_mobilevit_refuses_grids_that_its_patches_do_not_divide():
    explainer = Explainer(timm.create_model("mobilevit_xxs").eval())
    pixels = torch.randn(1, 3, 72, 72)
    with pytest.raises(ModelError, match="resizes its 9x9 grid"):
        explainer.explain(pixels, "rollout")
    assert explainer.explain(pixels, "saliency", 1).relevance.shape == (1, 3, 3)


def test_sizes_that_attention_was_not_built_for_are_refused_in_one_line():
    for name, words in (
        ("gcvit_xxtiny", "global queries do not fit"),
        ("efficientformer_l1", "attends among 49 tokens"),
    ):
        model = timm.create_model(name).eval()
        with pytest.raises(ModelError, match=words):
            Explainer(model).explain(torch.randn(1, 3, 256, 256), "rollout")


def test_models_of_attentive_classes_without_attention_stay_unsupported():
    for name in ("poolformer_s12", "fastvit_t8"):
        with torch.device("meta"):
            model = timm.create_model(name)
        with pytest.raises(ModelError, match="it has no attention"):
            family_of(model)
        assert list_models(name) == []
    assert list_models("caformer_s18") and list_models("fastvit_sa12")


def test_merging_tells_what_lies_between_placed_calls():
    fine, coarse = (4, 6), (2, 3)
    places = merging([(whole(24), fine), (None, fine), (whole(24), fine), (None, coarse), (whole(6), coarse)])
    assert [place is None for place in places] == [False, True, False, True, False]
    assert places[0].merged is None and places[2].merged is None
    assert places[4].merged.view(fine).tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2


def test_shares_of_area_are_those_of_a_common_finer_grid():
    """14x10 parts and 20x6 cells, both made of the squares of a 140x30 grid."""
    shares = overlaps((14, 10), (20, 6))
    for part in (0, 37, 139):
        image = torch.eye(140)[part].view(14, 10)
        fine = np.kron(image.numpy(), np.ones((10, 3))) / 30
        cells = fine.reshape(20, 7, 6, 5).sum((1, 3))
        np.testing.assert_allclose(shares[part].view(20, 6).numpy(), cells, atol=1e-7)
    half = overlaps((1, 1), (4, 4), (0.25, 0.25), (0.5, 0.5)).view(4, 4)
    assert half[1:3, 1:3].flatten().tolist() == [0.25] * 4 and float(half.sum()) == 1
