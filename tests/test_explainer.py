"""Every method on every kind of model: shapes, batches, classes, threads; and what users get back."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import CLASSES, GRID, PATCH, SIZE, SMALL, Memory, lively, small
from timm.models.vision_transformer import VisionTransformer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vit_explain import Explainer, Explanation, explain, list_methods, load_model
from vit_explain.errors import ImageError, ModelError, OptionError, OutputError, TargetError, VitExplainError
from vit_explain.image import Preprocessing
from vit_explain.layer import BLOCK_ELEMENTS
from vit_explain.store import read_folder

METHODS = {method.name: method for method in list_methods()}


def target_for(name: str, target: object) -> object:
    return target if METHODS[name].class_specific else None


# What makes methods of many looks cheap enough for every model; see Method.options.
CHEAP = {"samples": 6, "steps": 3}


def quick(name: str) -> dict[str, Any]:
    return {option: value for option, value in CHEAP.items() if option in METHODS[name].options}


def says_what_works(name: str, error: VitExplainError) -> bool:
    """Whether a refusal offers something else: the word "instead", or the name of another method."""
    others = [other for other in METHODS if other != name and "_" in other]  # one-word names are English words, too
    return any(re.search(rf"\b{word}\b", str(error)) for word in ("instead", *others))


def relevance_or_refusal(
    explainer: Explainer, pixels: torch.Tensor, name: str, target: Any, options: dict[str, Any]
) -> np.ndarray | VitExplainError:
    try:
        return explainer.explain(pixels, name, target, **options).relevance
    except VitExplainError as refusal:
        return refusal


@pytest.mark.parametrize("name", METHODS)
def test_new_tensors_go_by_the_model_and_not_by_the_default(name, vit, pixels):
    torch.set_default_dtype(torch.float64)
    try:
        found = Explainer(vit).attribute(pixels[:1], target_for(name, 1), name, **quick(name))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32 and found.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_new_tensors_are_where_the_others_are_whatever_the_default(name, vit, pixels):
    explainer, target, options = Explainer(vit), target_for(name, 1), quick(name)
    expected = explainer.explain(pixels[:1], name, target, **options).relevance
    with torch.device("meta"):
        np.testing.assert_array_equal(explainer.explain(pixels[:1], name, target, **options).relevance, expected)


@pytest.mark.parametrize("name", METHODS)
def test_conformance(name, any_model, pixels, request):
    """Shape, finite, deterministic, signed as declared, a batch equals singles; or a refusal that helps."""
    explainer, options = Explainer(any_model), quick(name)
    target = target_for(name, [0, 1, 3])
    relevance = relevance_or_refusal(explainer, pixels, name, target, options)
    if isinstance(relevance, VitExplainError):
        assert request.node.callspec.params["any_model"] != "class token", (
            f"every method explains this one: {relevance}"
        )
        assert says_what_works(name, relevance), relevance
        return
    assert relevance.shape in ((3, *GRID), (3, *SIZE)) and relevance.dtype == np.float32
    assert np.isfinite(relevance).all()
    # Grad-CAM++ cuts off at zero what may be negative everywhere in an image.
    spread = relevance.std() if name == "gradcam_plus_plus" else relevance.std((1, 2)).min()
    assert (spread > 0) == (name != "uniform")
    assert METHODS[name].signed or relevance.min() >= 0
    assert (explainer.explain(pixels, name, target, **options).relevance == relevance).all()
    for image in range(3):
        alone = explainer.explain(pixels[image], name, target_for(name, [0, 1, 3][image]), **options).relevance
        np.testing.assert_allclose(alone[0], relevance[image], rtol=1e-4, atol=1e-4 * np.abs(relevance).max())
    np.testing.assert_array_equal(explainer.attribute(pixels, target, name, **options).numpy(), relevance)


@pytest.mark.parametrize("name", METHODS)
def test_double_precision_models_have_the_same_maps(name, vit, pixels):
    target, options = target_for(name, [0, 1, 3]), quick(name)
    single = Explainer(vit).explain(pixels, name, target, **options).relevance
    double = Explainer(vit.double()).explain(pixels, name, target, **options).relevance
    np.testing.assert_allclose(double, single, rtol=1e-3, atol=1e-3 * np.abs(single).max())


def test_refusals_are_told_apart():
    assert says_what_works("gae", OptionError("no class token here; use patches instead"))
    assert says_what_works("gae", OptionError("no class token here: gradient_rollout has no need of one"))
    assert not says_what_works("gradient_rollout", OptionError("gradient_rollout: this model has no attention"))


@pytest.mark.parametrize("name", METHODS)
def test_methods_state_their_facts(name):
    method = METHODS[name]
    assert method.summary.endswith(".") and method.paper and method.forwards >= 1
    for text in (method.means, method.does_not_mean):
        assert text.endswith(".") and text.count(". ") <= 1, "a sentence or two"
    if "gradient" in method.needs:  # then the look itself differentiates
        assert method.backwards > 0
    if method.backwards > 0:
        assert method.class_specific and method.needs & {"gradient", "graph", "probe"}
    for option in method.options.values():
        assert option.check(option.default, name) == option.default
        assert option.parse(str(option.default), name) == option.default
        assert option.allowed


def test_more_images_than_a_chunk(vit):
    many = torch.randn(19, 3, *SIZE)
    explainer = Explainer(vit)
    together = explainer.explain(many, target=[n % CLASSES for n in range(19)])
    for n in (0, 7, 8, 18):
        alone = explainer.explain(many[n], target=n % CLASSES)
        np.testing.assert_allclose(together.relevance[n], alone.relevance[0], rtol=1e-4, atol=1e-8)
        np.testing.assert_allclose(together.logits[n], alone.logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["rollout", "gae", "legrad", "rise", "occlusion"])
def test_where_memory_runs_out_fewer_images_go_into_a_forward(vit, monkeypatch, name):
    """Also when it is a method that runs out, and not the look; what was found before stays as it is."""
    images = torch.randn(10, 3, *SIZE, generator=torch.Generator().manual_seed(8))
    explainer, options = Explainer(vit), quick(name)
    target = target_for(name, [n % CLASSES for n in range(10)])
    expected = explainer.explain(images, name, target, **options).relevance
    memory = Memory(monkeypatch, vit, 3)
    found = explainer.explain(images, name, target, **options).relevance
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert max(memory.sizes) > memory.most
    memory.sizes.clear()
    explainer.explain(images, name, target, **options)
    assert max(memory.sizes) <= memory.most  # it is known from then on
    memory.most = 0
    with pytest.raises(ModelError, match=f"{name}: the device has no memory for one image of 24x40 pixels"):
        explainer.explain(images, name, target, **options)


def test_classes_of_one_image_cost_one_forward(vit, pixels, monkeypatch):
    forwards = []
    plain = type(vit).forward
    monkeypatch.setattr(type(vit), "forward", lambda self, x: forwards.append(len(x)) or plain(self, x))
    explainer = Explainer(vit)
    together = explainer.explain(pixels[:1], target=[2, 0, 3])
    assert forwards == [1]
    assert together.target_numbers == [2, 0, 3] and together.image_of == [0, 0, 0]
    for row, target in enumerate((2, 0, 3)):
        alone = explainer.explain(pixels[:1], target=target)
        np.testing.assert_array_equal(together.relevance[row], alone.relevance[0])
    both = explainer.explain(pixels[:2], target=[[0, 1], [2, 3]])
    assert both.image_of == [0, 0, 1, 1] and both.target_numbers == [0, 1, 2, 3]
    for row, (image, target) in enumerate(((0, 0), (0, 1), (1, 2), (1, 3))):
        alone = explainer.explain(pixels[image], target=target)
        np.testing.assert_allclose(both.relevance[row], alone.relevance[0], rtol=1e-4, atol=1e-8)


def test_no_class_means_rollout_and_a_class_gradient_rollout(vit, pixels):
    explainer = Explainer(vit)
    assert explainer.explain(pixels).method == "rollout"
    assert explainer.explain(pixels, target=1).method == "gradient_rollout"
    found = explainer.explain(pixels, "gradient_rollout")
    assert found.target_numbers == list(found.logits.argmax(1))


def test_dynamic_sizes_need_not_be_square(pixels):
    model = small("dynamic size")
    for rows, columns in ((2, 7), (5, 5), (6, 1)):
        found = Explainer(model).explain(torch.randn(2, 3, rows * PATCH, columns * PATCH), target=0)
        assert found.relevance.shape == (2, rows, columns)


def test_pixels_that_patches_do_not_cover_are_outside():
    """37 pixels hold four patches of 8 and five pixels that the model never sees."""
    from small_models import SMALL, lively
    from timm.models.vision_transformer import VisionTransformer

    model = lively(VisionTransformer(**{**SMALL, "img_size": (37, 24)}))
    found = Explainer(model).explain(torch.randn(1, 3, 37, 24))
    heat = found.heatmap()
    assert heat.shape == (1, 37, 24)
    assert (heat[0, 32:] == 0).all() and (heat[0, :32] > 0).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"discard_ratio": 1.0}, r"discard_ratio must be a number in \[0, 1\), not 1.0"),
        ({"discard_ratio": -0.1}, "discard_ratio must be"),
        ({"discard_ratio": float("nan")}, "discard_ratio must be"),
        ({"discard_ratio": "half"}, "discard_ratio must be"),
        ({"head_fusion": "median"}, "head_fusion must be 'mean' or 'min' or 'max'"),
        ({"head": 1}, "rollout has no option 'head'; its options: head_fusion, discard_ratio, legacy"),
        ({"method": "rolout"}, "no method 'rolout'; near matches: rollout"),
        ({"method": "attention", "layer": 3}, "layer 3 does not exist; the model has layers 0 to 2"),
        ({"method": "attention", "layer": -4}, "layer -4 does not exist"),
        ({"method": "attention", "head": 3}, "head 3 does not exist; the model has heads 0 to 2"),
        ({"method": "attention", "query": (3, 0)}, "not on the 3x5 grid"),
        ({"method": "attention", "query": (1.5, 0)}, "not on the 3x5 grid"),
        ({"method": "attention", "query": ("a", 0)}, "not on the 3x5 grid"),
        ({"method": "attention", "query": 16}, "tokens are 0 to 15"),
    ],
)
def test_options_are_checked(vit, pixels, options, words):
    with pytest.raises(OptionError, match=words):
        Explainer(vit).explain(pixels, **options)


def test_a_class_for_a_method_without_classes_is_refused(vit, pixels):
    with pytest.raises(TargetError, match="rollout does not depend on a class"):
        Explainer(vit).explain(pixels, "rollout", 1)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.full((1, 3, *SIZE), torch.nan), "not finite"),
        (torch.full((1, 3, *SIZE), torch.inf), "not finite"),
        (torch.zeros(1, 3, *SIZE, dtype=torch.uint8), "floating point"),
        (torch.zeros(3, 4), "floating point"),
        (torch.zeros(0, 3, *SIZE), "floating point"),
        ([], "no images"),
    ],
)
def test_bad_pixels_are_refused(vit, images, words):
    with pytest.raises(ImageError, match=words):
        Explainer(vit).explain(images)


def test_scores_that_are_not_finite_are_refused(vit, pixels):
    with torch.no_grad():
        vit.head.bias[0] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        Explainer(vit).explain(pixels)


def test_what_is_no_model_is_refused():
    for thing, words in ((torch.nn.Linear(2, 2), "Linear is not a supported transformer"), (3, "not int")):
        with pytest.raises(ModelError, match=words):
            Explainer(thing)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="3 labels were given, but VisionTransformer has 4 classes"):
        Explainer(small("class token"), labels=["a", "b", "c"])
    for options in ({"checkpoint": "weights.pth"}, {"device": "cpu"}):
        with pytest.raises(ModelError, match="go with a model's name"):
            Explainer(small("class token"), **options)


def test_other_than_three_channels():
    from small_models import SMALL, lively
    from timm.models.vision_transformer import VisionTransformer

    model = lively(VisionTransformer(**SMALL, in_chans=5))
    found = Explainer(model).explain(torch.randn(2, 5, *SIZE), target=0)
    assert found.overlay().shape == (*SIZE, 3)
    with pytest.raises(ModelError, match="takes 5 channels, not 3"):
        Explainer(model).explain(Image.new("RGB", (30, 30)))


class Matrices(TorchDispatchMode):
    """Notes every tensor that ends in (N, N) and is as large as the attention of one image and all heads."""

    def __init__(self, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads, self.tokens = heads, tokens
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            square = isinstance(leaf, torch.Tensor) and leaf.shape[-2:] == (self.tokens, self.tokens)
            if square and leaf.numel() >= self.heads * self.tokens**2:
                self.seen.append(tuple(leaf.shape))
        return result


@pytest.mark.parametrize("name", [name for name in METHODS if "attention" in METHODS[name].needs])
@pytest.mark.parametrize(("anatomy", "tokens"), [("class token", 16), ("mean pooling", 15)])
def test_attention_of_all_heads_is_never_held_at_once(name, anatomy, tokens, pixels, monkeypatch):
    """Rows are derived in blocks, and how large the blocks are changes no map."""
    explainer, target = Explainer(small(anatomy)), target_for(name, 1)
    expected = explainer.explain(pixels[:1], name, target, **quick(name)).relevance
    monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", 2 * 3 * tokens)
    with Matrices(3, tokens) as matrices:
        found = explainer.explain(pixels[:1], name, target, **quick(name)).relevance
    assert not matrices.seen
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_matrices_are_noticed(pixels):
    with Matrices(3, 16) as matrices:
        Explainer(small("class token")).explain(pixels[:1], "gmar", 1, norm="l1")
    assert (1, 3, 16, 16) in matrices.seen


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].needs])
def test_half_precision_models_are_explained_in_single(name, vit, pixels):
    """Of numbers that were worked out in single precision, hardly any has no more digits than bfloat16 holds."""
    found = Explainer(vit.bfloat16()).explain(pixels.bfloat16(), name, target_for(name, 1), **quick(name)).relevance
    values = torch.from_numpy(found[found != 0])
    assert found.dtype == np.float32 and torch.isfinite(values).all()
    assert (values.bfloat16().float() == values).float().mean() < 0.1


@pytest.mark.parametrize("name", METHODS)
def test_a_picture_of_one_patch(name):
    """There is nothing to compare it with: some refuse, and nothing breaks."""
    model = lively(VisionTransformer(**{**SMALL, "img_size": (PATCH, PATCH), "embed_dim": 96}))
    pixels = torch.randn(2, 3, PATCH, PATCH, generator=torch.Generator().manual_seed(4))
    found = relevance_or_refusal(Explainer(model), pixels, name, target_for(name, 1), quick(name))
    assert isinstance(found, VitExplainError) or (len(found) == 2 and np.isfinite(found).all())


# Attention -----------------------------------------------------------------------------------------------------------


def test_attention_rows(vit, pixels):
    from small_models import unfused_attention

    attentions, _ = unfused_attention(vit, pixels, 0)
    explainer = Explainer(vit)

    def found(**options: object) -> torch.Tensor:
        return torch.from_numpy(explainer.explain(pixels, "attention", **options).relevance)

    def expected(row: torch.Tensor) -> torch.Tensor:
        return row[:, 1:].unflatten(1, GRID)

    torch.testing.assert_close(found(), expected(attentions[-1].mean(1)[:, 0]))
    torch.testing.assert_close(found(layer=0, head=2), expected(attentions[0][:, 2, 0]))
    torch.testing.assert_close(found(layer=-2, head="max", query=(1, 3)), expected(attentions[1].amax(1)[:, 1 + 5 + 3]))
    torch.testing.assert_close(found(query=0, head=-1), expected(attentions[-1][:, -1, 0]))


def test_attention_reads_as_the_head_reads(pixels):
    """Mean pooling: the mean of the patches' rows. Two class tokens: the mean of theirs. Pooling attention: its row."""
    from small_models import unfused_attention

    for name, tokens in (("mean pooling", slice(0, None)), ("mean pooling beside a class token", slice(1, None)),
                         ("distilled", slice(0, 2))):  # fmt: skip
        model = small(name)
        attentions, _ = unfused_attention(model, pixels, 0)
        prefix = attentions[-1].shape[-1] - GRID[0] * GRID[1]
        expected = attentions[-1].mean(1)[:, tokens].mean(1)[:, prefix:].unflatten(1, GRID)
        found = torch.from_numpy(Explainer(model).explain(pixels, "attention").relevance)
        torch.testing.assert_close(found, expected)
    for name in ("attention pooling", "attention pooling beside a class token"):
        model = small(name)
        found = Explainer(model).explain(pixels, "attention").relevance
        np.testing.assert_allclose(found.sum((1, 2)), 1, rtol=1e-5)
        with pytest.raises(OptionError, match="pooling attention"):
            Explainer(model).explain(pixels, "attention", layer=0)


# Where the heat is ---------------------------------------------------------------------------------------------------


def planted(grid: tuple[int, int], readout: str) -> torch.nn.Module:
    """A ViT built by hand whose tokens attend to bright patches, and whose class 1 is how bright they are."""
    from timm.models.vision_transformer import VisionTransformer

    token = readout == "token"
    model = VisionTransformer(
        img_size=(grid[0] * 8, grid[1] * 8), patch_size=8, embed_dim=8, depth=2, num_heads=1, num_classes=2,
        class_token=token, global_pool="token" if token else "avg", mlp_ratio=1,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
        model.patch_embed.proj.weight[0] = 1 / (3 * 64)  # channel 0: brightness
        # Channel 7 is constant, so that the layer norms do not blow up faint light to full strength.
        model.patch_embed.proj.bias[7] = 4.0
        if token:
            model.cls_token[..., 7] = 4.0
        for block in model.blocks:
            block.attn.qkv.bias[0] = 6.0  # every query asks for channel 0,
            block.attn.qkv.weight[8, 0] = 6.0  # keys answer with it,
            block.attn.qkv.weight[16, 0] = 1.0  # and values carry it
            block.attn.qkv.bias[16] = 0.38  # (what a norm makes of no light is a little below zero)
            block.attn.proj.weight[1, 0] = 1.0  # to channel 1,
        model.head.weight[1, 1] = 1.0  # which is class 1
    return model


PHOTO = (120, 200)  # height, width


def photo_with_a_light_at(top: int, left: int) -> Image.Image:
    pixels = np.full((*PHOTO, 3), 127, np.uint8)  # the colour of padding, which is no light
    pixels[top : top + 16, left : left + 16] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("grid", "readout", "crop"),
    list(itertools.product([(6, 6), (4, 9), (9, 4)], ["token", "mean"], ["center", "squash", "border"])),
)
def test_a_bright_patch_lights_its_place_in_the_photo(grid, readout, crop):
    model = planted(grid, readout)
    preparing = Preprocessing(
        (grid[0] * 8, grid[1] * 8), (0.5,) * 3, (0.5,) * 3, "bilinear", crop_pct=1.0, crop_mode=crop
    )
    explainer = Explainer(model, preprocessing=preparing)
    for top, left in ((52, 92), (40, 110), (70, 70)):  # inside every crop
        for method, target in (("rollout", None), ("gradient_rollout", 1), ("attention", None)):
            found = explainer.explain(photo_with_a_light_at(top, left), method, target)
            heat = found.heatmap()[0]
            assert heat.shape == PHOTO
            row, column = np.unravel_index(heat.argmax(), heat.shape)
            # A patch is up to 8 / min(scale) photo pixels wide; the light's centre must be within one of the peak.
            reach = [8 * o / r for o, r in zip(found.geometries[0].original, found.geometries[0].resized, strict=True)]
            assert abs(row - (top + 8)) <= reach[0] and abs(column - (left + 8)) <= reach[1], (method, row, column)


@pytest.mark.parametrize("cell", list(itertools.product(range(4), range(9))))
def test_a_bright_patch_lights_its_token(cell):
    model = planted((4, 9), "token")
    pixels = torch.full((1, 3, 32, 72), -1.0)
    row, column = cell
    pixels[..., row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 1.0
    for method, target in (("rollout", None), ("gradient_rollout", 1), ("attention", None)):
        relevance = Explainer(model).explain(pixels, method, target).relevance[0]
        assert np.unravel_index(relevance.argmax(), relevance.shape) == cell


# What users keep -----------------------------------------------------------------------------------------------------


def test_an_explanation_is_saved_whole_and_says_what_it_is(vit, tmp_path):
    explainer = Explainer(vit, labels=["ant", "bee", "cat", "dog"])
    picture = Image.fromarray((np.random.default_rng(0).random((50, 70, 3)) * 255).astype(np.uint8))
    found = explainer.explain(picture, target="cat", head_fusion="max", discard_ratio=0.5)
    assert isinstance(found, Explanation)
    assert found.heatmap().shape == (1, 50, 70) and found.heatmap().dtype == np.float32
    assert found.heatmap().min() >= 0 and found.heatmap().max() <= 1
    files = {path.name for path in found.save(tmp_path / "out")}
    assert files == {"overlay.png", "side_by_side.png", "explanation.npz", "manifest.json"}
    with Image.open(tmp_path / "out" / "overlay.png") as overlay:
        assert overlay.size == (70, 50)
    manifest, arrays = read_folder(tmp_path / "out")
    np.testing.assert_array_equal(arrays["relevance"], found.relevance)
    assert manifest["method"] == "gradient_rollout" and manifest["options"]["discard_ratio"] == 0.5
    assert manifest["rows"][0]["target"] == "cat" and manifest["rows"][0]["target_number"] == 2
    assert {"vit_explain", "torch"} <= set(manifest["versions"])
    assert sum(entry["probability"] for entry in manifest["rows"][0]["top"]) == pytest.approx(1, abs=1e-4)
    json.dumps(found.as_dict(), allow_nan=False)


def test_images_of_many_kinds_and_sizes(vit, tmp_path):
    array = (np.random.default_rng(0).random((40, 60, 3)) * 255).astype(np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    kinds = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array), array]
    found = explain(vit, kinds, target=1)
    assert (found.relevance == found.relevance[0]).all() and found.sources[0] == str(tmp_path / "a.png")
    mixed = explain(vit, [array, array[:20]])
    assert [heat.shape for heat in mixed.heatmaps()] == [(40, 60), (20, 60)]
    with pytest.raises(OutputError, match=r"heatmaps\(\)"):
        mixed.heatmap()
    several = explain(vit, array, target=[0, 1])
    names = {path.name for path in several.save(tmp_path / "several")}
    assert {"overlay-0.png", "overlay-1.png"} <= names
    second = several.row(1)
    assert second.target_numbers == [1] and (second.relevance == several.relevance[1:]).all()


def test_words_say_where_in_the_photo_not_in_the_crop():
    """A light at the left of the crop of a wide photo is in the photo's middle."""
    model = planted((6, 6), "token")
    explainer = Explainer(model, preprocessing=Preprocessing((48, 48), (0.5,) * 3, (0.5,) * 3, "bilinear"))
    wide = np.zeros((60, 400, 3), np.uint8)
    wide[20:35, 172:187] = 255
    found = explainer.explain(wide, "attention")
    assert "left" not in found.where() and "centre" in found.where()
    assert found.seen_share() == pytest.approx(60 / 400, abs=0.01)


def test_examples_of_the_package_are_explained(tmp_path):
    """The packaged photos go through the bundled model from file to files."""
    for photo in sorted(Path("examples").glob("*.jpg")):
        found = explain("bundled", photo, target="top1")
        with Image.open(photo) as picture:
            width, height = picture.size
        assert found.heatmap().shape == (1, height, width)
        assert len(found.save(tmp_path / photo.stem)) == 4


def test_rows_count_from_the_end_too():
    pixels = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(2))
    found = Explainer(small("class token")).explain(pixels, "gradient_rollout", [[0, 1]] * 2)
    last, same = found.row(-1), found.row(3)
    np.testing.assert_array_equal(last.relevance, same.relevance)
    assert last.targets == same.targets and last.relevance.shape[0] == 1
    assert found.where(-1) == last.where() == same.where(-1)
    for row in (4, -5):
        with pytest.raises(OptionError, match=f"there is no row {row}"):
            found.row(row)


def test_words_for_very_thin_photos():
    """Of which the model sees a square that has no pixel left when the photo is made small."""
    thin = np.random.default_rng(0).integers(0, 255, (3, 4000, 3), np.uint8)
    found = Explainer().explain(thin, "gradient_rollout", 0)
    assert found.relevance.max() > 0 and "no relevance anywhere" not in found.where()


def test_what_is_no_model_method_or_tensor_is_told_in_a_sentence():
    explainer = Explainer(small("class token"))
    pixels = torch.randn(1, 3, *SIZE)
    for wrong, error, message in (
        (lambda: load_model(explainer.model), ModelError, "taken as it is"),  # type: ignore[arg-type]
        (lambda: explainer.attribute("photo.jpg"), ImageError, "a dense tensor of preprocessed pixels, not str"),  # type: ignore[arg-type]
        (lambda: explainer.attribute(pixels.to_sparse()), ImageError, "not a tensor of layout torch.sparse_coo"),
        (lambda: explainer.attribute(pixels, method=["rollout"]), OptionError, "no method"),  # type: ignore[arg-type]
    ):
        with pytest.raises(error, match=message):
            wrong()


def test_an_explanation_in_a_line_and_its_checkpoint(tmp_path):
    explainer = Explainer("bundled")
    photo = np.zeros((30, 40, 3), np.uint8)
    found = explainer.explain([photo, photo], "gradient_rollout", 0)
    assert repr(found) == f"<Explanation: 2 maps of bundled by gradient_rollout, 16×16, for {found.targets[0]}>"
    assert found.as_dict()["checkpoint"] is None
    file = tmp_path / "other.pth"
    torch.save(explainer.plain.state_dict(), file)
    found = Explainer("bundled", checkpoint=file).explain(photo, "rollout")
    assert repr(found) == "<Explanation: 1 map of bundled by rollout, 16×16>"
    assert found.as_dict()["checkpoint"] == str(file)
