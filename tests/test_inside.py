"""Looking inside: each method against slow derivations with loops over images, heads, queries and keys; invariants."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_models import CLASSES, GRID, PATCH, SIZE, SMALL, lively, small, unfused_attention
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import Tensor

from vit_explain import Contrast, Explainer, artifacts
from vit_explain.contributions import grams, squared_norms
from vit_explain.errors import ModelError, OptionError
from vit_explain.heads import of_patches
from vit_explain.layer import BLOCK_ELEMENTS, Layer
from vit_explain.methods.attention_distance import attention_distance
from vit_explain.methods.attention_entropy import attention_entropy
from vit_explain.types import Anatomy, Attribution, Readout, Trace

Array = NDArray[Any]
PATCHES = GRID[0] * GRID[1]
FUSE = {"mean": np.mean, "max": np.max, "min": np.min}


@dataclass
class Inside:
    """What a model of timm blocks held, of one image, read off with plain hooks and PyTorch's own unfused attention."""

    attention: list[Array]  # (H, N, N)
    values: list[Array]  # (H, N, Dv)
    tokens: list[Array]  # (N, D) entering each block, and leaving the last
    projection: list[Array]  # (H, D, Dv), layer scale included
    bias: list[Array]  # (D,), layer scale included
    row: Array  # (N,) how the head reads
    prefix: int


def look_inside(model: Any, image: Tensor) -> Inside:
    tokens: list[Tensor] = []
    values: list[Array] = []
    heads = SMALL["num_heads"]

    def keep_values(attn: Any, inputs: Any) -> None:
        bias = attn.v_bias if getattr(attn, "v_bias", None) is not None else attn.qkv.bias.chunk(3)[2]
        value = torch.nn.functional.linear(inputs[0][0], attn.qkv.weight.chunk(3)[2], bias)
        values.append(value.detach().unflatten(-1, (heads, -1)).transpose(0, 1).double().numpy())

    hooks = [block.register_forward_pre_hook(lambda _m, inputs: tokens.append(inputs[0])) for block in model.blocks]
    hooks += [block.attn.register_forward_pre_hook(keep_values) for block in model.blocks]
    hooks.append(model.blocks[-1].register_forward_hook(lambda _m, _i, out: tokens.append(out)))
    with torch.no_grad():
        model(image[None])
    for hook in hooks:
        hook.remove()
    attentions, _ = unfused_attention(model, image[None], 0)
    scales = [getattr(getattr(block, "ls1", None), "gamma", torch.ones(24)).detach() for block in model.blocks]
    weights = [
        (block.attn.proj.weight.detach() * scale[:, None]).unflatten(1, (heads, -1)).transpose(0, 1).double().numpy()
        for block, scale in zip(model.blocks, scales, strict=True)
    ]
    biases = [
        (block.attn.proj.bias.detach() * scale).double().numpy()
        for block, scale in zip(model.blocks, scales, strict=True)
    ]
    length = tokens[0].shape[1]
    prefix = length - PATCHES
    return Inside(
        [a[0].double().numpy() for a in attentions],
        values,
        [x[0].detach().double().numpy() for x in tokens],
        weights,
        biases,
        read_row(model, tokens[-1].detach(), prefix),
        prefix,
    )


def read_row(model: Any, last: Tensor, prefix: int) -> Array:
    length = last.shape[1]
    row = np.zeros(length)
    if getattr(model, "attn_pool", None) is not None:
        pool = model.attn_pool
        with torch.no_grad():
            read = model.norm(last)[0] if model.pool_include_prefix else model.norm(last)[0, prefix:]
            query = pool.q(pool.latent[0]).unflatten(-1, (pool.num_heads, -1))  # (1, H, d)
            key = pool.kv(read).unflatten(-1, (2, pool.num_heads, -1))[:, 0]  # (keys, H, d)
            weights = (torch.einsum("qhd,khd->hqk", query, key) * pool.scale).softmax(-1).mean((0, 1))
        row[length - len(weights) :] = weights.numpy()
    elif getattr(model, "num_prefix_tokens", 0) == 2 and hasattr(model, "dist_token"):
        row[:2] = 0.5
    elif model.global_pool == "avg":
        row[prefix:] = 1 / PATCHES
    else:
        row[0] = 1
    return row


def contributions(inside: Inside, layer: int) -> Array:
    """``T_i(x_j)``, (N, N, D), term by term."""
    attention, values, projection = inside.attention[layer], inside.values[layer], inside.projection[layer]
    tokens = inside.tokens[layer]
    length, width = tokens.shape
    found = np.zeros((length, length, width))
    for i, j in itertools.product(range(length), range(length)):
        for head in range(len(attention)):
            found[i, j] += attention[head, i, j] * (projection[head] @ values[head, j])
        if i == j:
            found[i, j] += tokens[i]
    return found


TIMM_BLOCKS = [
    "class token", "distilled", "registers", "mean pooling", "mean pooling beside a class token", "attention pooling",
    "attention pooling beside a class token", "beit with relative position bias", "qk norm",
    "eva with rotary positions",
]  # fmt: skip


def compare(model: torch.nn.Module, pixels: Tensor, method: str, expected: Any, **options: Any) -> None:
    """The method's maps of two images at once are what ``expected(inside)`` says of the tokens of each."""
    found = Explainer(model).explain(pixels[:2], method, **options).relevance
    for image, one in enumerate(found):
        inside = look_inside(model, pixels[image])
        wanted = expected(inside)[inside.prefix :].reshape(GRID)
        np.testing.assert_allclose(one, wanted, rtol=5e-4, atol=1e-5 * np.abs(wanted).max())


# Value norms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["class token", "registers", "beit with relative position bias"])
def test_contributions_are_all_there_is(name, pixels):
    """``Σ_j T_i(x_j)`` and the bias make the token as it leaves attention: what the oracles below are built on."""
    model: Any = small(name)
    inside = look_inside(model, pixels[0])
    for number, block in enumerate(model.blocks):
        x = torch.from_numpy(inside.tokens[number]).float()[None]
        with torch.no_grad():
            added = block.attn(block.norm1(x))
            added = block.ls1(added) if hasattr(block, "ls1") else added
        whole = contributions(inside, number).sum(1) + inside.bias[number]
        np.testing.assert_allclose((x + added)[0], whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "layer"), list(itertools.product(TIMM_BLOCKS, (0, -1))))
def test_value_norm_is_the_norm_of_the_sum_of_heads(name, layer, pixels):
    def by_hand(inside: Inside) -> Array:
        attention, values, projection = inside.attention[layer], inside.values[layer], inside.projection[layer]
        norms = np.zeros(len(inside.row))
        for j in range(len(norms)):
            brought = np.zeros(24)
            for head in range(len(attention)):
                weight = sum(inside.row[i] * attention[head, i, j] for i in range(len(norms)))
                brought += weight * (projection[head] @ values[head, j])
            norms[j] = np.sqrt((brought**2).sum())
        return norms

    compare(small(name), pixels, "value_norm", by_hand, layer=layer)


def rolled(inside: Inside, matrices: list[Array]) -> Array:
    result = np.eye(len(inside.row))
    for matrix in matrices:
        result = (matrix / matrix.sum(1, keepdims=True)) @ result
    return inside.row @ result


@pytest.mark.parametrize("name", TIMM_BLOCKS)
def test_globenc_is_the_rollout_of_norms(name, pixels):
    def by_hand(inside: Inside) -> Array:
        return rolled(inside, [np.sqrt((contributions(inside, layer) ** 2).sum(2)) for layer in range(3)])

    compare(small(name), pixels, "globenc", by_hand)


@pytest.mark.parametrize("name", TIMM_BLOCKS)
def test_alti_is_the_rollout_of_nearness(name, pixels):
    def by_hand(inside: Inside) -> Array:
        matrices = []
        for layer in range(3):
            parts = contributions(inside, layer)
            nearness = np.zeros(parts.shape[:2])
            for i, j in itertools.product(*map(range, parts.shape[:2])):
                whole = parts[i].sum(0) + inside.bias[layer]
                nearness[i, j] = max(0.0, np.abs(whole).sum() - np.abs(whole - parts[i, j]).sum())
            matrices.append(nearness)
        return rolled(inside, matrices)

    compare(small(name), pixels, "alti", by_hand)


@pytest.mark.parametrize("method", ["globenc", "alti"])
def test_contributions_of_a_token_sum_to_one(method, pixels):
    """Without prefix tokens nothing is dropped; with them the patches' share is below one."""
    free = Explainer(small("mean pooling")).explain(pixels, method).relevance
    np.testing.assert_allclose(free.sum((1, 2)), 1, rtol=1e-5)
    classed = Explainer(small("class token")).explain(pixels, method).relevance.sum((1, 2))
    assert (classed > 0).all() and (classed < 1).all()


@pytest.mark.parametrize("method", ["globenc", "alti"])
def test_tokens_that_get_nothing_from_others_stay_themselves(method, pixels):
    """An attention that writes nothing leaves the mean over the patches as it was read."""
    model: Any = small("mean pooling")
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight.zero_()
            block.attn.proj.bias.zero_()
    found = Explainer(model).explain(pixels, method).relevance
    np.testing.assert_allclose(found, 1 / PATCHES, rtol=1e-5)
    assert (Explainer(model).explain(pixels, "value_norm").relevance == 0).all()


@pytest.mark.parametrize("method", ["globenc", "alti"])
def test_where_nothing_contributes_a_token_keeps_itself(method, pixels):
    """All tokens zero: every share is 0/0, and the map is still what was read."""
    model: Any = small("mean pooling")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
    found = Explainer(model).explain(pixels, method).relevance
    np.testing.assert_allclose(found, 1 / PATCHES, rtol=1e-5)


def test_equal_values_make_norms_of_attention():
    """Kobayashi et al.: norms and attention differ because values differ; one head with equally long values is A."""
    generator = torch.Generator().manual_seed(0)
    values = torch.nn.functional.normalize(torch.randn(2, 1, 7, 5, generator=generator), dim=3)
    weights = torch.randn(2, 1, 3, 7, generator=generator).softmax(-1)
    layer = Layer(1.0, probabilities=weights, v=values)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator))
    norms = squared_norms(weights, grams(layer, rotation)).sqrt()
    torch.testing.assert_close(norms, weights[:, 0])


def test_blocks_do_not_change_what_is_found(pixels, monkeypatch):
    """Whatever is derived in pieces is the same in one piece and in pieces of a row or a key."""
    model = small("registers")
    methods = ("attention_distance", "attention_entropy", "logit_lens", "value_norm", "globenc", "alti")
    whole = {method: Explainer(model).explain(pixels, method).relevance for method in methods}
    for elements in (1, 500):
        monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", elements)
        for method in methods:
            parted = Explainer(model).explain(pixels, method).relevance
            np.testing.assert_allclose(parted, whole[method], rtol=1e-4, atol=1e-6)


def gated() -> Any:
    model: Any = VisionTransformer(**SMALL)
    for block in model.blocks:
        block.attn.gate = torch.nn.Linear(24, 24)
    return model


NO_NORM_BEFORE: dict[str, tuple[Any, str]] = {
    "post norm": (lambda: VisionTransformer(**SMALL, block_fn=ResPostBlock), "normalises its projection"),
    "parallel": (lambda: VisionTransformer(**SMALL, block_fn=ParallelScalingBlock), "attention and MLP together"),
    "gated": (gated, "gates attention"),
    "scaled": (lambda: Eva(**SMALL, scale_attn_inner=True), "normalises attention"),
    "post norm eva": (lambda: Eva(**SMALL, use_post_norm=True), "normalises its projection"),
}


@pytest.mark.parametrize("kind", NO_NORM_BEFORE)
def test_blocks_of_another_order_are_refused_and_rollout_is_not(kind, pixels):
    build, words = NO_NORM_BEFORE[kind]
    explainer = Explainer(lively(build()))
    for method in ("value_norm", "globenc"):
        with pytest.raises(ModelError, match=rf"{words}.* use attention or rollout instead"):
            explainer.explain(pixels, method)
    with pytest.raises(ModelError, match=r"use (attention or )?rollout instead"):
        explainer.explain(pixels, "alti")
    assert explainer.explain(pixels, "rollout").relevance.std() > 0


# Distance and entropy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "head"),
    [
        ("class token", -1, "mean"), ("registers", 0, "max"), ("mean pooling", 1, "min"), ("distilled", -2, 2),
        ("attention pooling", -1, -1),
    ],
)  # fmt: skip
def test_attention_distance_and_entropy_by_hand(name, layer, head, pixels):
    model = small(name)
    distances = Explainer(model).explain(pixels[:2], "attention_distance", layer=layer, head=head)
    entropies = Explainer(model).explain(pixels[:2], "attention_entropy", layer=layer, head=head)
    for image in range(2):
        attention = look_inside(model, pixels[image]).attention[layer]
        heads, length, _ = attention.shape
        prefix = length - PATCHES
        distance, entropy = np.zeros((heads, PATCHES)), np.zeros((heads, PATCHES))
        for h, i in itertools.product(range(heads), range(PATCHES)):
            mass = 0.0
            for j in range(PATCHES):
                weight = attention[h, prefix + i, prefix + j]
                apart = np.hypot(i // GRID[1] - j // GRID[1], i % GRID[1] - j % GRID[1])
                distance[h, i] += weight * apart
                mass += weight
            distance[h, i] /= mass
            for j in range(length):
                weight = attention[h, prefix + i, j]
                entropy[h, i] -= weight * np.log(weight) if weight > 0 else 0
        for found, numbers, fact in (
            (distances, distance, "mean_distance"),
            (entropies, entropy, "mean_entropy"),
        ):
            wanted = numbers[head] if isinstance(head, int) else FUSE[head](numbers, axis=0)
            np.testing.assert_allclose(found.relevance[image].ravel(), wanted, rtol=1e-4, atol=1e-6)
            assert found.facts[fact][image] == pytest.approx(wanted.mean(), rel=1e-4)


def test_attention_distance_in_pixels_knows_patches_that_are_not_square(pixels):
    model = lively(VisionTransformer(**{**SMALL, "patch_size": (8, 4), "img_size": (24, 20)}))
    explainer = Explainer(model)
    images = pixels[..., :24, :20]
    attention = unfused_attention(model, images, 0)[0][-1][0, :, 1:, 1:].double().numpy()
    expected = np.zeros((3, PATCHES))
    for h, i, j in itertools.product(range(3), range(PATCHES), range(PATCHES)):
        apart = np.hypot(8 * (i // 5 - j // 5), 4 * (i % 5 - j % 5))
        expected[h, i] += attention[h, i, j] * apart / attention[h, i].sum()
    found = explainer.explain(images, "attention_distance", unit="pixels").relevance[0]
    np.testing.assert_allclose(found.ravel(), expected.mean(0), rtol=1e-4)


def synthetic(weights: Tensor, prefix: int) -> Trace:
    """One layer of this attention (B, H, N, N) over prefix tokens and a 3x5 grid."""
    anatomy = Anatomy(("",), GRID, SIZE, prefix, Readout(tokens=(0,)), features="")
    inquiry: Any = None  # nobody looks again
    return Trace(
        [Layer(1.0, probabilities=weights)], None, anatomy, torch.zeros(1, 1, 1, 1), torch.zeros(1, 2), inquiry
    )


def test_attention_to_oneself_is_near_and_certain_and_to_all_far_and_not():
    alone = synthetic(torch.eye(16).expand(1, 2, 16, 16), 1)
    assert (attention_distance(alone).map == 0).all() and (attention_entropy(alone).map == 0).all()
    everywhere = synthetic(torch.full((1, 2, 16, 16), 1 / 16), 1)
    torch.testing.assert_close(attention_entropy(everywhere).map, torch.full((1, *GRID), np.log(16)).float())
    distances = attention_distance(everywhere).map[0]
    assert distances[0, 0] == distances.max() and distances[1, 2] == distances.min()
    # Whoever looks at prefix tokens alone looks nowhere.
    weights = torch.zeros(1, 1, 17, 17)
    weights[..., :2] = 0.5
    assert (attention_distance(synthetic(weights, 2)).map == 0).all()


def test_heads_are_measured_before_they_are_fused():
    """Two heads that each look at one token are certain, though their mean is not."""
    weights = torch.zeros(1, 2, 16, 16)
    weights[0, 0, :, 3] = weights[0, 1, :, 7] = 1
    trace = synthetic(weights, 1)
    assert (attention_entropy(trace, head="mean").map == 0).all()
    found = of_patches(trace, 0, "max", lambda rows, part: rows[..., 3], "test")
    assert (found == 1).all()


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("attention_distance", {"layer": 3}, "attention_distance: layer 3 does not exist; the model has layers 0 to 2"),
        ("attention_distance", {"unit": "metres"}, "unit must be 'patches' or 'pixels'"),
        ("attention_entropy", {"head": -4}, "attention_entropy: head -4 does not exist; the model has heads 0 to 2"),
        ("logit_lens", {"layer": -4}, "logit_lens: layer -4 does not exist"),
        ("value_norm", {"layer": 7}, "value_norm: layer 7 does not exist"),
        ("artifact_tokens", {"layer": 7}, "artifact_tokens: layer 7 does not exist"),
        ("artifact_tokens", {"deviations": -1.0}, "deviations must be"),
        ("token_pca", {"component": 14}, "15 patches of 24 channels have components 0 to 13"),
        ("token_pca", {"component": -1}, "component must be"),
        ("token_pca", {"layer": 3}, "token_pca: layer 3 does not exist"),
    ],
)
def test_options_are_checked(vit, pixels, method, options, words):
    with pytest.raises(OptionError, match=words):
        Explainer(vit).explain(pixels, method, **options)


# Lens ----------------------------------------------------------------------------------------------------------------


def tokens_of(model: Any, pixels: Tensor) -> list[Tensor]:
    """(B, N, D) leaving each block."""
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: seen.append(out.detach())) for block in model.blocks]
    with torch.no_grad():
        model(pixels)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("layer", (0, -1))
def test_logit_lens_is_the_model_with_every_token_that_one(model: Any, layer, pixels):
    """Patch by patch, with sequences as long as the model's own, through its norm and head."""
    targets = [0, 1, 3]
    logits = Explainer(model).explain(pixels, "logit_lens", targets, layer=layer, scale="logit").relevance
    probabilities = Explainer(model).explain(pixels, "logit_lens", targets, layer=layer).relevance
    tokens = tokens_of(model, pixels)[layer]
    length = tokens.shape[1]
    for image, patch in itertools.product(range(3), range(PATCHES)):
        sequence = tokens[image, length - PATCHES + patch].expand(1, length, -1)
        with torch.no_grad():
            output = model.forward_head(model.norm(sequence))[0]
        place = (image, *divmod(patch, GRID[1]))
        assert logits[place] == pytest.approx(float(output[targets[image]]), rel=1e-3, abs=1e-4)
        assert probabilities[place] == pytest.approx(float(output.softmax(0)[targets[image]]), rel=1e-3, abs=1e-5)


def test_logit_lens_reads_a_token_as_a_class_token(vit, pixels):
    with torch.no_grad():
        expected = vit.head(vit.norm(tokens_of(vit, pixels)[1][:, 1:]))[..., 2].unflatten(1, GRID)
    found = Explainer(vit).explain(pixels, "logit_lens", 2, layer=1, scale="logit").relevance
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_logit_lens_of_all_classes_is_a_distribution(model, pixels):
    found = Explainer(model).explain(pixels[:1], "logit_lens", list(range(CLASSES)), layer=1).relevance
    np.testing.assert_allclose(found.sum(0), 1, rtol=1e-5)


def test_logit_lens_is_signed_where_it_can_be_negative(vit, pixels):
    explainer = Explainer(vit)

    def signed(target: Any, scale: str) -> bool:
        found = explainer.explain(pixels[:1], "logit_lens", target, scale=scale)
        assert ("against" in found.where()) == found.signed
        return found.signed

    assert not signed(1, "probability") and signed(1, "logit")
    assert signed(Contrast(1, 2), "probability") and signed(lambda output: output[:, 1] - 1, "probability")


def test_logit_lens_takes_contrasts_and_functions(vit, pixels):
    explainer = Explainer(vit)

    def lens(target: Any, scale: str = "logit") -> Array:
        return explainer.explain(pixels, "logit_lens", target, scale=scale).relevance

    np.testing.assert_allclose(lens(Contrast(2, 0)), lens(2) - lens(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lens(lambda output: 3 * output[:, 1], "probability"), 3 * lens(1), rtol=1e-5)


# Components ----------------------------------------------------------------------------------------------------------


def component_by_hand(tokens: Array, number: int, grid: tuple[int, int], kept: Array) -> tuple[Array, float]:
    """One image's component by singular vectors, and its share of the variance; zero where not kept."""
    centred = tokens[kept] - tokens[kept].mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    along = np.zeros(len(tokens))
    along[kept] = left[:, number] * sizes[number]
    lean = 0.0
    for patch, value in enumerate(along):
        row, column = divmod(patch, grid[1])
        lean += value * np.hypot((row + 0.5) / grid[0] * 2 - 1, (column + 0.5) / grid[1] * 2 - 1)
    return (-along if lean > 0 else along), sizes[number] ** 2 / (sizes**2).sum()


# Fewer patches than channels, and more of them.
@pytest.mark.parametrize("grid", [GRID, (6, 7)])
@pytest.mark.parametrize("component", [0, 1, 2])
@pytest.mark.parametrize(("layer", "layer_norm", "foreground"), [(-1, True, False), (0, False, False), (1, True, True)])
def test_token_pca_is_the_singular_vectors(grid, component, layer, layer_norm, foreground):
    model = small("dynamic size")
    pixels = torch.randn(2, 3, grid[0] * PATCH, grid[1] * PATCH, generator=torch.Generator().manual_seed(5))
    found = Explainer(model).explain(
        pixels, "token_pca", component=component, layer=layer, layer_norm=layer_norm, foreground=foreground
    )
    for image, tokens in enumerate(tokens_of(model, pixels)[layer][:, 1:].double().numpy()):
        if layer_norm:
            centred = tokens - tokens.mean(1, keepdims=True)
            tokens = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        kept = np.ones(len(tokens), bool)
        if foreground:
            kept = component_by_hand(tokens, 0, grid, kept)[0] > 0
            assert found.facts["foreground_share"][image] == pytest.approx(kept.mean())
        expected, share = component_by_hand(tokens, component, grid, kept)
        np.testing.assert_allclose(found.relevance[image].ravel(), expected, rtol=1e-3, atol=1e-3)
        assert found.facts["explained"][image] == pytest.approx(share, rel=1e-3)


def test_components_that_a_foreground_lacks_are_told(vit, pixels):
    explainer = Explainer(vit)
    kept = explainer.explain(pixels[:1], "token_pca", foreground=True).facts["foreground_share"][0] * PATCHES
    few = round(float(kept))
    last = explainer.explain(pixels[:1], "token_pca", foreground=True, component=few - 2)
    assert not last.warnings[0] and last.relevance.any()
    beyond = explainer.explain(pixels[:1], "token_pca", foreground=True, component=few - 1)
    assert f"the foreground has {few} patches" in beyond.warnings[0][0]


def test_components_speak_neither_for_nor_against(vit, pixels):
    found = Explainer(vit).explain(pixels[:1], "token_pca")
    assert found.signed and "for the target" not in found.where()
    assert found.as_dict()["rows"][0]["where"] == found.where()


def test_components_are_uncorrelated_and_complete(vit, pixels):
    """Their squares sum to the variance of the tokens, and their products to nothing."""
    explainer = Explainer(vit)
    found = np.stack(
        [explainer.explain(pixels, "token_pca", component=k, layer_norm=False).relevance for k in range(14)], 1
    ).reshape(3, 14, PATCHES)
    products = found @ found.transpose(0, 2, 1)
    tokens = tokens_of(vit, pixels)[-1][:, 1:].numpy()
    for image in range(3):
        np.testing.assert_allclose(products[image], np.diag(np.diag(products[image])), atol=1e-2)
        centred = tokens[image] - tokens[image].mean(0)
        assert np.trace(products[image]) == pytest.approx((centred**2).sum(), rel=1e-4)


def test_a_component_that_leans_nowhere_has_its_largest_entry_positive():
    model = small("dynamic size")
    pixels = torch.randn(4, 3, 2 * PATCH, 2 * PATCH, generator=torch.Generator().manual_seed(6))
    found = Explainer(model).explain(pixels, "token_pca").relevance.reshape(4, 4)
    for values in found:
        assert values[np.abs(values).argmax()] > 0


# Artifacts -----------------------------------------------------------------------------------------------------------


def test_artifact_tokens_shows_norms(model, pixels):
    found = Explainer(model).explain(pixels, "artifact_tokens", layer=1)
    norms = tokens_of(model, pixels)[1][:, -PATCHES:].norm(dim=2).numpy()
    np.testing.assert_allclose(found.relevance.reshape(3, -1), norms, rtol=1e-5)
    np.testing.assert_allclose(found.facts["median_norm"], np.median(norms, 1), rtol=1e-5)
    np.testing.assert_allclose(found.facts["largest_norm"], norms.max(1), rtol=1e-5)
    for image in range(3):
        median = np.median(norms[image])
        spread = 1.4826 * np.median(np.abs(norms[image] - median))
        count = sum(norm > median + max(6 * spread, median) for norm in norms[image])
        assert found.facts["artifact_tokens"][image] == count
        assert found.facts["artifact_share"][image] == pytest.approx(count / PATCHES)


def norms_with(*far: float, spread: float = 1.0) -> Tensor:
    """200 norms around ten, the first of them as given."""
    norms = 10 + spread * torch.randn(1, 200, generator=torch.Generator().manual_seed(7))
    norms[0, : len(far)] = torch.tensor(far)
    return norms


@pytest.mark.parametrize("number", [1, 6, 7])
def test_the_median_is_torchs(number):
    values = torch.randn(3, number)
    assert torch.equal(artifacts.median(values), values.median(1).values)


def test_outliers_are_far_from_the_others_and_large():
    assert artifacts.outliers(norms_with(100, 60, 30)).nonzero()[:, 1].tolist() == [0, 1, 2]
    assert not artifacts.outliers(norms_with()).any()
    # Small spread: what is far outside of it but not twice as large is no artifact. Large spread: twice is not enough.
    assert not artifacts.outliers(norms_with(15, 19, spread=0.01)).any()
    assert not artifacts.outliers(norms_with(22, spread=3.0)).any()
    assert artifacts.outliers(norms_with(22, spread=3.0), 1.0)[0, 0]
    assert not artifacts.outliers(torch.full((2, 9), 5.0)).any()
    both = artifacts.outliers(torch.cat([norms_with(50), norms_with()]))
    assert both.sum(1).tolist() == [1, 0]  # every image by its own norms


def test_a_map_is_dominated_by_few_tokens_with_most_of_its_mass():
    norms = norms_with(100, 80)
    flat = torch.ones(1, 10, 20)
    peaked = flat.clone()
    peaked[0, 0, :2] = 150.0  # 300 of 498
    assert artifacts.dominated(norms, peaked).tolist() == [True]
    assert artifacts.dominated(norms, flat).tolist() == [False]
    for share in (0.49, 0.51):
        half = flat.clone()
        half[0, 0, :2] = 99 * share / (1 - share)  # beside 198 patches of one
        assert artifacts.dominated(norms, half).tolist() == [share > 0.5]
    elsewhere = flat.clone()
    elsewhere[0, 5, :2] = 150.0
    assert artifacts.dominated(norms, elsewhere).tolist() == [False]
    assert artifacts.dominated(norms, peaked - 100).tolist() == [True]  # only what is positive counts
    assert artifacts.dominated(norms, -peaked).tolist() == [False]
    many = norms_with(*[100.0] * 10)  # one in twenty is no exception any more
    wide = flat.clone()
    wide[0, 0, :10] = 150.0
    assert artifacts.dominated(many, wide).tolist() == [False]


def hoarder() -> Any:
    """A ViT whose tokens all attend to one patch with a far larger norm: row 1, column 2 of 6x6."""
    model: Any = VisionTransformer(
        img_size=48, patch_size=8, embed_dim=8, depth=2, num_heads=1, num_classes=2, mlp_ratio=1
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        model.patch_embed.proj.weight[1:3] = 0.01
        model.patch_embed.proj.bias[3] = 1.0
        model.cls_token[..., 3] = 1.0
        model.pos_embed[0, 1 + 1 * 6 + 2, 0] = 50.0
        for block in model.blocks:
            block.attn.qkv.bias[0] = 20.0  # every query asks for channel 0,
            block.attn.qkv.weight[8, 0] = 1.0  # and keys answer with it
    return model


def test_maps_that_lie_on_artifacts_come_with_a_warning():
    explainer = Explainer(hoarder())
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(8))
    for method in ("rollout", "attention", "artifact_tokens"):
        found = explainer.explain(pixels, method)
        assert np.unravel_index(found.relevance[0].argmax(), (6, 6)) == (1, 2)
        for (warning,) in found.warnings:
            assert "lies on 1 patch whose token has a norm far above those of the other 35: artifact" in warning
    assert explainer.explain(pixels, "artifact_tokens").facts["artifact_tokens"].tolist() == [1, 1]
    for method in ("uniform", "attention_distance", "edges"):
        assert explainer.explain(pixels, method).warnings == [[], []]


def test_a_warning_is_added_to_the_images_own():
    norms = torch.cat([torch.zeros(2, 1), torch.cat([norms_with(100), norms_with()])], 1)
    anatomy = Anatomy(("",), (10, 20), (10, 20), 1, Readout(tokens=(0,)), features="")
    inquiry: Any = None
    trace = Trace([], None, anatomy, torch.zeros(2, 1, 1, 1), torch.zeros(2, 2), inquiry, norms=norms)
    peaked = torch.ones(2, 10, 20)
    peaked[:, 0, 0] = 1000.0
    plain = artifacts.warned(trace, Attribution(peaked))
    assert [len(one) for one in plain.warnings] == [1, 0]
    assert plain.warnings[0][0].startswith("83% of this map lies on 1 patch ")
    more = artifacts.warned(trace, Attribution(peaked, warnings=[["a"], ["b"]]))
    assert more.warnings == [["a", *plain.warnings[0]], ["b"]]
    # At the pixels: a patch's are counted together, and what no patch covers is not.
    anatomy = Anatomy(("",), (10, 20), (20, 40), 1, Readout(tokens=(0,)), features="")
    trace = Trace([], None, anatomy, torch.zeros(2, 1, 1, 1), torch.zeros(2, 2), inquiry, norms=norms)
    fine = torch.nn.functional.pad(peaked.repeat_interleave(2, 1).repeat_interleave(2, 2), (0, 5, 0, 3), value=99.0)
    assert artifacts.warned(trace, Attribution(fine)).warnings == plain.warnings
    trace.norms = None
    assert artifacts.warned(trace, Attribution(fine)).warnings == []


def test_norms_cost_no_tokens(vit, pixels):
    """A look for rollout keeps one number a token of the last block, and nothing of a look at nothing."""
    from vit_explain.inquiry import Subject
    from vit_explain.models.timm_plain import TimmPlain

    family = TimmPlain()
    subject = Subject(vit, family, family.anatomy(vit, tuple(pixels.shape[1:])))
    trace, _ = subject.look(pixels, frozenset({"attention"}))
    assert trace.norms is not None and not trace.tokens
    torch.testing.assert_close(trace.norms, tokens_of(vit, pixels)[-1].norm(dim=2))
    assert subject.look(pixels, frozenset())[0].norms is None
