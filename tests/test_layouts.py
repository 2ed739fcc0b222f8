"""Windowed and pooled attention: rows carried down against explicit matrices over all tokens, built another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from geometry import misplaced
from matrices import Full, accumulated, averaging, captured, positive, rolled_out, scattered, with_gradients
from small_models import lively
from swin_models import SWINS, calm, full_matrices
from timm.models import maxxvit as maxvit_code
from timm.models import swin_transformer as swin_code
from timm.models.hiera import Hiera
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitConvCfg, MaxxVitTransformerCfg
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.twins import Twins
from torch import Tensor, nn

from vit_explain import Explainer
from vit_explain.capture import look
from vit_explain.errors import ModelError, OptionError
from vit_explain.family import family_of
from vit_explain.image import Preprocessing
from vit_explain.inspection import inspect
from vit_explain.layer import Layer
from vit_explain.matching import match
from vit_explain.registry import METHODS

SIDE = (32, 48)
SWIN: dict[str, Any] = {"img_size": SIDE, "patch_size": 4, "window_size": 2, "embed_dim": 12, "depths": (2, 2),
                        "num_heads": (2, 3), "num_classes": 4}  # fmt: skip
MAXVIT = MaxxVitCfg(
    embed_dim=(16, 32),
    depths=(1, 1),
    block_type=("M", "M"),
    stem_width=8,
    conv_cfg=MaxxVitConvCfg(),
    transformer_cfg=MaxxVitTransformerCfg(dim_head=8, window_size=(2, 2), grid_size=(2, 2)),
)
MVIT = MultiScaleVitCfg(
    depths=(1, 2), embed_dim=(8, 16), num_heads=(1, 2), stride_q=((1, 1), (2, 2)), stride_kv=((2, 2), (1, 1)),
    use_cls_token=True, use_abs_pos=True, rel_pos_type="", expand_attn=True,
)  # fmt: skip

PLAIN = {"attention", "values", "tokens", "attended", "blocks"}  # what only ordinary blocks have


def awake(model: nn.Module) -> nn.Module:
    """Swin V2 begins with blocks that add nothing: the weights of the norms after them are zero."""
    for part in model.modules():
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
    return model


def swin(model: Any, layers: list[Layer]) -> list[Full]:
    found: list[Full] = []
    calls, grid = iter(layers), (8, 12)
    for number, stage in enumerate(model.layers):
        merge = None
        if number:
            merge, grid = averaging(grid, 2), (grid[0] // 2, grid[1] // 2)
        tokens = grid[0] * grid[1]
        for block in stage.blocks:
            image = torch.arange(tokens).view(1, *grid, 1)
            shifted = torch.roll(image, (-block.shift_size[0], -block.shift_size[1]), (1, 2))
            windows = swin_code.window_partition(shifted, block.window_size).flatten(1)
            full = scattered(next(calls).attention(), windows, windows, tokens, tokens)
            found.append((full, torch.eye(tokens), merge))
            merge = None
    return found


def maxvit(model: Any, layers: list[Layer]) -> list[Full]:
    found: list[Full] = []
    calls, grid = iter(layers), (8, 12)
    for number in range(2):
        merge = None
        if number:
            merge, grid = averaging(grid, 2), (grid[0] // 2, grid[1] // 2)
        tokens = grid[0] * grid[1]
        image = torch.arange(tokens).view(1, *grid, 1)
        for partition in (maxvit_code.window_partition, maxvit_code.grid_partition):
            windows = partition(image, [2, 2]).flatten(1)
            found.append(
                (scattered(next(calls).attention(), windows, windows, tokens, tokens), torch.eye(tokens), merge)
            )
            merge = None
    return found


def pvt(model: Any, layers: list[Layer]) -> list[Full]:
    first, second = layers
    fine = (8, 12)
    reduced = first.attention()[0].mean(0) @ averaging(fine, 2)
    return [
        (reduced, torch.eye(96), None),
        (second.attention()[0].mean(0), torch.eye(24), averaging(fine, 2)),
    ]


def twins(model: Any, layers: list[Layer]) -> list[Full]:
    def squares(h: int, w: int) -> Tensor:
        image = torch.arange(h * w).view(h, w)
        return torch.stack([image[r : r + 2, c : c + 2].flatten() for r in range(0, h, 2) for c in range(0, w, 2)])

    local, reduced, last = layers
    fine, coarse = squares(8, 12), squares(4, 6)
    return [
        (scattered(local.attention(), fine, fine, 96, 96), torch.eye(96), None),
        (reduced.attention()[0].mean(0) @ averaging((8, 12), 2), torch.eye(96), None),
        (scattered(last.attention(), coarse, coarse, 24, 24), torch.eye(24), averaging((8, 12), 2)),
    ]


def with_class_token(matrix: Tensor) -> Tensor:
    return torch.block_diag(torch.ones(1, 1), matrix)


def mvit(model: Any, layers: list[Layer]) -> list[Full]:
    pool = with_class_token(averaging((8, 12), 2))
    first, second, third = (layer.attention()[0].mean(0) for layer in layers)
    return [(first @ pool, torch.eye(97), None), (second, pool, None), (third, torch.eye(25), None)]


def hiera(model: Any, layers: list[Layer]) -> list[Full]:
    tokens = 8 * 12
    # Where the model puts each token, told by itself.
    order = model.unroll(torch.arange(tokens, dtype=torch.float32).view(1, tokens, 1)).flatten().long()
    unroll = F.one_hot(order, tokens).float()  # (own order, row by row)
    found: list[Full] = []
    units, first, second, last = tokens // 16, *layers
    for layer, leaving in ((first, tokens), (second, tokens // 4)):
        windows = torch.arange(tokens).view(-1, units).T
        queries = torch.arange(leaving).view(-1, units).T
        full = scattered(layer.attention(), queries, windows, leaving, tokens)
        residual = torch.eye(tokens)
        if leaving < tokens:  # tokens that are pooled lie a quarter of the sequence apart
            residual = torch.stack([torch.eye(tokens)[j::leaving].mean(0) for j in range(leaving)])
        found.append((full, residual, unroll if layer is first else None))
    found.append((last.attention()[0].mean(0), torch.eye(tokens // 4), None))
    return found


SMALL: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, list[Layer]], list[Full]]]] = {
    "swin": (lambda: SwinTransformer(**SWIN), swin),
    "swin v2": (lambda: awake(SwinTransformerV2(**SWIN)), swin),
    "maxvit": (lambda: MaxxVit(MAXVIT, img_size=SIDE, num_classes=4), maxvit),
    "pvt v2": (
        lambda: PyramidVisionTransformerV2(
            depths=(1, 1), embed_dims=(8, 16), num_heads=(1, 2), sr_ratios=(2, 1), mlp_ratios=(2, 2), num_classes=4
        ),
        pvt,
    ),
    "twins": (
        lambda: Twins(
            img_size=SIDE, patch_size=4, embed_dims=(8, 16), num_heads=(1, 2), mlp_ratios=(2, 2), depths=(2, 1),
            sr_ratios=(2, 1), wss=(2, 2), num_classes=4,
        ),
        twins,
    ),
    "mvit v2": (lambda: MultiScaleVit(MVIT, img_size=SIDE, num_classes=4), mvit),
    "hiera": (
        lambda: Hiera(
            img_size=SIDE, embed_dim=8, num_heads=1, stages=(1, 2), q_pool=1, mask_unit_size=(4, 4),
            mask_unit_attn=(True, False), patch_kernel=(4, 4), patch_stride=(4, 4), patch_padding=(0, 0), num_classes=4,
        ),
        hiera,
    ),
}  # fmt: skip


def other_swin(_: Any, layers: list[Layer]) -> list[Full]:
    """Of libraries other than timm; nothing is padded."""
    matrices = full_matrices([layer.attention() for layer in layers], (8, 12))
    return [(matrix[:, :-1], torch.eye(len(matrix)), merge) for matrix, merge in matrices]


SMALL |= {name: (lambda build=build: awake(build(SIDE)), other_swin) for name, build in SWINS.items()}


@pytest.fixture(params=SMALL)
def named(request: Any) -> tuple[str, nn.Module]:
    torch.manual_seed(0)
    return request.param, lively(SMALL[request.param][0]())


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, *SIDE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("cell", ((0, 0), (1, 4), (3, 5)))
@pytest.mark.parametrize("name", SMALL)
def test_values_change_where_the_picture_does(name, cell):
    """With weights as at the start of a training, when a token is hardly more than its own patch."""
    torch.manual_seed(0)
    exact = "swin" in name or name == "hiera"  # the others have convolutions that overlap
    assert (
        misplaced(
            calm(SMALL[name][0]()) if name in SWINS else SMALL[name][0]().eval(), SIDE, cell, near=0 if exact else 1
        )
        == []
    )


def test_rollout_is_the_product_of_explicit_matrices(named, pixels):
    name, model = named
    found = Explainer(model).explain(pixels, "rollout").relevance
    prefix = int(name == "mvit v2")
    for image in range(2):
        parts = SMALL[name][1](model, captured(model, pixels[image : image + 1]))
        last = len(parts[-1][0])
        row = np.eye(1, last)[0] if prefix else np.full(last, 1 / last)
        row = rolled_out(parts, row)
        np.testing.assert_allclose(found[image].ravel(), row[prefix:], rtol=1e-4, atol=1e-7)
        assert found[image].sum() + row[:prefix].sum() == pytest.approx(1, rel=1e-5)


def test_gae_is_the_product_of_explicit_matrices(named, pixels):
    """Mean over heads of positive attention times gradient, without normalising; the rows' own identity left out."""
    name, model = named
    found = Explainer(model).explain(pixels[:1], "gae", 2).relevance[0]
    with torch.enable_grad():
        trace = with_gradients(model, pixels[:1], 2)
    products = [positive(layer) for layer in trace.layers]
    parts = SMALL[name][1](model, products)
    prefix = int(name == "mvit v2")
    last = len(parts[-1][0])
    kept = np.eye(1, last)[0] if prefix else np.full(last, 1 / last)
    gained = accumulated(parts, kept)
    assert found.any()
    np.testing.assert_allclose(found.ravel(), gained[prefix:], rtol=1e-3, atol=1e-5 * gained.max())


def test_gae_that_begins_late_reaches_the_first_tokens_by_residuals_alone(named, pixels):
    name, model = named
    with torch.enable_grad():
        layers = with_gradients(model, pixels[:1], 2).layers
    start, prefix = len(layers) - 1, int(name == "mvit v2")
    found = Explainer(model).explain(pixels[:1], "gae", 2, start_layer=start).relevance[0]
    parts = SMALL[name][1](model, [positive(layer) for layer in layers])
    parts = [
        (attention if number == start else torch.zeros_like(attention), residual, merge)
        for number, (attention, residual, merge) in enumerate(parts)
    ]
    last = len(parts[-1][0])
    gained = accumulated(parts, np.eye(1, last)[0] if prefix else np.full(last, 1 / last))
    np.testing.assert_allclose(found.ravel(), gained[prefix:], rtol=1e-3, atol=1e-5 * gained.max())


def test_places_are_where_the_tokens_are():
    with torch.device("meta"), torch.no_grad():
        model = SMALL["pvt v2"][0]().eval()
        seen = look(model, torch.empty(1, 3, *SIDE), {"attention"})
    layers, _ = match(seen.layers, Explainer(model).family.anatomy(model, (3, *SIDE)))
    for layer in layers:
        known = (layer.place.queries, layer.place.keys, layer.place.pooled, layer.place.merged)
        assert {one.device.type for one in known if one is not None} == {"meta"}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_explains_or_says_why_not(named, method, pixels):
    _, model = named
    explainer = Explainer(model)
    chosen = METHODS[method]
    options = {
        name: 4 for name in ("samples", "steps", "channels") if name in chosen.options and chosen.options[name].default
    }
    options |= {"players": 2} if "players" in chosen.options else {}
    target = 1 if chosen.class_specific else None
    if not chosen.any_layout and (chosen.needs & PLAIN or chosen.within is not None):
        with pytest.raises(ModelError, match=r"is not defined for; use rollout.* or a gradient"):
            explainer.explain(pixels, method, target, **options)
        return
    explained = explainer.explain(pixels, method, target, **options)
    assert np.isfinite(explained.relevance).all()
    assert explained.heatmap().shape[1:] == SIDE
    alone = explainer.explain(pixels[1:], method, target, **options).relevance[0]
    scale = np.abs(explained.relevance).max()
    np.testing.assert_allclose(alone, explained.relevance[1], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(("method", "target"), [("rollout", None), ("gradient_rollout", 1)])
def test_the_original_scripts_way_is_refused(named, pixels, method, target):
    with pytest.raises(OptionError, match="which legacy, the original script's way, is not defined for"):
        Explainer(named[1]).explain(pixels, method, target, legacy=True)


def scores(model: nn.Module, pixels: Tensor) -> Tensor:
    return family_of(model).logits(model(pixels))


def test_the_family_says_where_attention_goes(named):
    family = family_of(named[1])
    plan = family.anatomy(named[1], (3, *SIDE)).plan
    assert family.attends == "in places" and plan is not None and plan.places


def test_looking_changes_no_output(named, pixels):
    _, model = named
    with torch.inference_mode():
        before = scores(model, pixels)
    Explainer(model).explain(pixels, "gradient_rollout", 1)
    with torch.inference_mode():
        assert torch.equal(before, scores(model, pixels))


def test_a_wrong_size_is_refused_in_one_line():
    model = SMALL["swin"][0]().eval()
    with pytest.raises(ModelError, match="takes 32x48 pixels"):
        Explainer(model).explain(torch.randn(1, 3, 48, 32))


def test_padded_windows_lose_what_padding_gets():
    """A grid that windows do not divide: attention to padding goes nowhere, and nothing else is lost."""
    torch.manual_seed(0)
    model = lively(SwinTransformer(**{**SWIN, "img_size": (20, 28)}))
    found = Explainer(model).explain(torch.randn(1, 3, 20, 28), "rollout").relevance
    assert found.shape == (1, 5, 7) and 0 < found.sum() < 1


def test_comparing_maps_of_two_grids(named, pixels):
    _, model = named
    compared = Explainer(model).compare(pixels, ["rollout", "gradcam", "saliency", "alti"], 1)
    assert set(compared.refused) == {"alti"}
    assert compared.agreement().shape == (3, 3)


def test_inspection_says_what_was_found(named):
    _, model = named
    how = Preprocessing(SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    found = inspect(Explainer(model, preprocessing=how))
    assert "rollout" in found.methods and "alti" in found.refused
    assert found.attention and found.classes == 4


# Smallest of their kind, shortened where they can be.
NAMED: dict[str, dict[str, Any]] = {
    "cait_xxs24_224": {"depth": 2},
    "convit_tiny": {"depth": 3, "local_up_to_layer": 2},
    "levit_128s": {},
    "levit_conv_128s": {},
    "pit_ti_224": {},
    "samvit_base_patch16_224": {
        "depth": 3,
        "embed_dim": 96,
        "num_heads": 2,
        "global_attn_indexes": (1,),
        "window_size": 5,
    },
    "tnt_s_patch16_224": {"depth": 2},
    "volo_d1_224": {},
    "naflexvit_base_patch16_gap": {"embed_dim": 96, "num_heads": 2, "depth": 2},
}


@pytest.mark.parametrize("name", NAMED)
def test_other_kinds_of_attention(name):
    torch.manual_seed(0)
    model = timm.create_model(name, **NAMED[name]).eval()
    explainer = Explainer(model)
    size = explainer.preprocessing.size
    h, w = explainer.family.anatomy(model, (3, *size)).grid
    assert misplaced(model, size, (h // 3, w // 2), near=1) == []
    pixels = torch.randn(2, 3, *size)
    for method, target in (("rollout", None), ("gradient_rollout", 1), ("gae", 1), ("attention", None), ("gradcam", 1)):
        maps = explainer.attribute(pixels, target, method)
        assert maps.isfinite().all()
        alone = explainer.attribute(pixels[1:], target, method)
        torch.testing.assert_close(maps[1:], alone, rtol=1e-3, atol=1e-4 * float(maps.abs().max()))


@pytest.mark.parametrize("size", [(224, 224), (192, 256)])
def test_levit_goes_by_what_it_was_built_for(size):
    model = timm.create_model("levit_128s", img_size=size, num_classes=4).eval()
    explainer = Explainer(model)
    assert explainer.preprocessing.size == size
    assert explainer.attribute(torch.randn(1, 3, *size), method="rollout").shape == (1, size[0] // 16, size[1] // 16)
    with pytest.raises(ModelError, match=f"takes {size[0]}x{size[1]} pixels"):
        explainer.attribute(torch.randn(1, 3, 256, 256), method="rollout")


@pytest.mark.parametrize("name", ["pvt v2", "twins", "hiera"])
def test_attention_that_the_models_own_code_spells_out(name, pixels):
    """With windows in a dimension of their own, too."""
    torch.manual_seed(0)
    model = lively(SMALL[name][0]())
    fused = [part for part in model.modules() if getattr(part, "fused_attn", False)]
    assert fused
    explainer = Explainer(model)
    expected = explainer.attribute(pixels, method="rollout"), explainer.attribute(pixels, 1, "gradient_rollout")
    for part in fused:
        part.fused_attn = False
    found = explainer.attribute(pixels, method="rollout"), explainer.attribute(pixels, 1, "gradient_rollout")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))
