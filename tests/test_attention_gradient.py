"""Methods of attention times gradient against slow derivations in float64, with full matrices and plain autograd."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_models import GRID, MODELS, PATCH, SMALL, lively, small
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn

from vit_explain import Contrast, Explainer
from vit_explain.errors import ModelError, OptionError, TargetError

Array = NDArray[np.float64]
TARGETS = [0, 1, 3]
STEPS = 4
PATHS = ("tam", "beyond_intuition")
ALL = ("grad_sam", "gae", "attn_gradcam", "ag_cam", "legrad", "attcat", "cdam", "gmar", "token_tm", *PATHS)
# With what the head reads: tokens in front, patches, or a pooling attention.
READS_PATCHES = ("mean pooling", "mean pooling beside a class token", "eva with rotary positions",
                 "beit with relative position bias")  # fmt: skip
POOLED = ("attention pooling", "attention pooling beside a class token")
PREFIX = {"distilled": 2, "registers": 5, "mean pooling": 0, "attention pooling": 0, "eva with rotary positions": 3}


# A slow look: unfused, in float64, everything in the graph ------------------------------------------------------------


@dataclass
class Slow:
    """One image through a model that spells attention out; lists are first block to last."""

    name: str
    given: nn.Module
    model: Any  # a copy of it, in float64
    image: Tensor
    y: Tensor
    scores: list[Tensor] = field(default_factory=list)  # before the softmax, (1, H, N, M), the pooling attention last
    attention: list[Tensor] = field(default_factory=list)
    entering: list[Tensor] = field(default_factory=list)
    leaving: list[Tensor] = field(default_factory=list)
    between: list[Tensor] = field(default_factory=list)  # after attention, before the MLP
    normed: Tensor | None = None  # before the last attention

    @property
    def tokens(self) -> int:
        return self.entering[0].shape[1]

    @property
    def depth(self) -> int:
        return len(self.entering)

    @property
    def prefix(self) -> int:
        return PREFIX.get(self.name, 1)

    @property
    def read(self) -> dict[int, float]:
        """Token -> weight with which the head reads it."""
        front = range(2 if self.name == "distilled" else 1)
        tokens = range(self.prefix, self.tokens) if self.name in READS_PATCHES else front
        return {token: 1 / len(tokens) for token in tokens}

    def gradients(self, y: Tensor | None = None) -> list[Array]:
        """∂y/∂A of every attention, (H, N, M)."""
        found = torch.autograd.grad(self.y if y is None else y, self.attention, retain_graph=True)
        return [one[0].numpy() for one in found]

    def maps(self) -> list[Array]:
        return [one[0].detach().numpy() for one in self.attention]

    def padded(self, row: Array) -> Array:
        """Over all tokens, of what a pooling attention may say about the patches alone."""
        return np.concatenate([np.zeros((*row.shape[:-1], self.tokens - row.shape[-1])), row], -1)

    def patches(self, row: Array) -> Array:
        return row[self.prefix :].reshape(GRID)


@contextmanager
def recorded(model: Any, scores: list[Tensor], attention: list[Tensor]) -> Iterator[None]:
    plain = torch.Tensor.softmax

    def softmax(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        scores.append(self)
        attention.append(plain(self, *args, **kwargs))
        return attention[-1]

    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    torch.Tensor.softmax = softmax  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.Tensor.softmax = plain  # type: ignore[method-assign]


def slow(name: str, model: nn.Module, image: Tensor, target: int) -> Slow:
    """``image``: (3, H, W)."""
    twin: Any = copy.deepcopy(model).double()
    look = Slow(name, model, twin, image.double(), torch.zeros(()))
    for block in twin.blocks:
        block.register_forward_pre_hook(lambda _module, args: look.entering.append(args[0]))
        block.register_forward_hook(lambda _module, _args, out: look.leaving.append(out))
        block.norm2.register_forward_pre_hook(lambda _module, args: look.between.append(args[0]))

    def normed(_module: nn.Module, _args: object, out: Tensor) -> None:
        look.normed = out

    twin.blocks[-1].norm1.register_forward_hook(normed)
    with recorded(twin, look.scores, look.attention):
        look.y = twin(look.image[None])[0, target]
    return look


def agrees(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-5 * np.abs(expected).max())


def check(name: str, pixels: Tensor, method: str, by_hand: Any, **options: Any) -> None:
    """The method against ``by_hand(look, **options)`` over all tokens, on three images with a class each."""
    model = small(name)
    maps = Explainer(model).explain(pixels, method, TARGETS, **options).relevance
    for image, target, found in zip(pixels, TARGETS, maps, strict=True):
        look = slow(name, model, image, target)
        agrees(found, look.patches(by_hand(look, **options)))


every_anatomy = pytest.mark.parametrize("name", MODELS)
some_anatomies = pytest.mark.parametrize("name", ["class token", "distilled", "registers", "mean pooling", *POOLED])


@every_anatomy
@pytest.mark.parametrize("head", ["mean", "max", "min", 1])
def test_attention_of_what_the_head_reads(name, head, pixels):
    model = small(name)
    maps = Explainer(model).explain(pixels, "attention", head=head).relevance
    for image, found in zip(pixels, maps, strict=True):
        look = slow(name, model, image, 0)
        heads = look.maps()[-1]
        rows = heads[head] if isinstance(head, int) else getattr(heads, head)(0)
        read = {0: 1.0} if name in POOLED else look.read
        row = sum(share * rows[token] for token, share in read.items())
        agrees(found, look.patches(look.padded(row)))


# One forward and one backward -----------------------------------------------------------------------------------------


def grad_sam_by_hand(look: Slow) -> Array:
    total = np.zeros(look.tokens)
    for weights, gradient in zip(look.maps(), look.gradients(), strict=True):
        heads, queries, keys = weights.shape
        for h, i, j in itertools.product(range(heads), range(queries), range(keys)):
            total[look.tokens - keys + j] += weights[h, i, j] * max(gradient[h, i, j], 0) / heads
    return total / (len(look.attention) * look.tokens)


@every_anatomy
def test_grad_sam(name, pixels):
    check(name, pixels, "grad_sam", grad_sam_by_hand)


def positive(weights: Array, gradient: Array) -> Array:
    """(H, N, M) twice -> (N, M)."""
    return np.maximum(weights * gradient, 0).mean(0)


def gae_by_hand(look: Slow, start_layer: int = 0) -> Array:
    pairs = list(zip(look.maps(), look.gradients(), strict=True))
    relevance = np.eye(look.tokens)
    for weights, gradient in pairs[start_layer : look.depth]:
        relevance = relevance + positive(weights, gradient) @ relevance
    if look.name in POOLED:
        return look.padded(positive(*pairs[-1]).mean(0)) @ relevance
    own = np.zeros(look.tokens)
    for token, weight in look.read.items():
        own[token] = weight
    return own @ relevance - own


@every_anatomy
def test_gae_is_the_product_of_all_layers(name, pixels):
    check(name, pixels, "gae", gae_by_hand)


def test_gae_may_begin_later(pixels):
    for start in (1, 2):
        check("class token", pixels, "gae", gae_by_hand, start_layer=start)


def attn_gradcam_by_hand(look: Slow) -> Array:
    weights, gradient = look.maps()[-1], look.gradients()[-1]
    queries = dict.fromkeys(range(weights.shape[1]), 1 / weights.shape[1]) if look.name in POOLED else look.read
    result = np.zeros(look.tokens)
    for h in range(len(weights)):
        row = look.padded(sum(share * weights[h, i] for i, share in queries.items()))
        slope = look.padded(sum(gradient[h, i] for i in queries))
        result += slope[look.prefix :].mean() * row / len(weights)
    return result


@every_anatomy
def test_attn_gradcam(name, pixels):
    check(name, pixels, "attn_gradcam", attn_gradcam_by_hand)


def ag_cam_by_hand(look: Slow) -> Array:
    result = np.zeros(look.tokens)
    for number, gradient in enumerate(look.gradients()):
        scores = look.scores[number][0].detach().numpy()
        heads, queries, keys = scores.shape
        if number == look.depth:  # the pooling attention
            read = range(queries)
        elif look.name in POOLED:
            read = range(look.tokens - look.attention[-1].shape[-1], look.tokens)
        else:
            read = sorted(look.read)
        for h, i, j in itertools.product(range(heads), read, range(keys)):
            result[look.tokens - keys + j] += max(gradient[h, i, j], 0) / (1 + np.exp(-scores[h, i, j]))
    return result


@every_anatomy
def test_ag_cam(name, pixels):
    check(name, pixels, "ag_cam", ag_cam_by_hand)


def legrad_by_hand(look: Slow, target: int, last: int | None = None) -> Array:
    model, result = look.model, np.zeros(look.tokens)
    for number in range(look.depth)[-(last or look.depth) :]:
        tokens = look.leaving[number]
        if look.name in POOLED:
            seen: list[Tensor] = []
            tokens = tokens[:, look.tokens - look.attention[-1].shape[-1] :]
            with recorded(model, [], seen):
                score = model.head(model.fc_norm(model.attn_pool(model.norm(tokens))))[0, target]
            attention = seen[0]
        else:
            mean = model.norm(tokens[0].mean(0))
            heads = [model.head, model.head_dist] if look.name == "distilled" else [model.head]
            score = sum(head(model.fc_norm(mean))[target] for head in heads) / len(heads)
            attention = look.attention[number]
        (gradient,) = torch.autograd.grad(score, [attention], retain_graph=True)
        for head in gradient[0].numpy():
            for query in head:
                result += look.padded(np.maximum(query, 0)) / (gradient.shape[1] * gradient.shape[2])
    return result


@every_anatomy
@pytest.mark.parametrize("last", [None, 1, 2])
def test_legrad(name, last, pixels):
    model = small(name)
    maps = Explainer(model).explain(pixels, "legrad", TARGETS, last=last).relevance
    for image, target, found in zip(pixels, TARGETS, maps, strict=True):
        look = slow(name, model, image, target)
        agrees(found, look.patches(legrad_by_hand(look, target, last)))


def test_legrad_of_a_model_with_frozen_weights(pixels, vit):
    expected = Explainer(vit).explain(pixels, "legrad", TARGETS).relevance
    vit.requires_grad_(False)
    np.testing.assert_allclose(Explainer(vit).explain(pixels, "legrad", TARGETS).relevance, expected, rtol=1e-5)


def attcat_by_hand(look: Slow, attentive: bool = True) -> Array:
    result = np.zeros(look.tokens)
    slopes = torch.autograd.grad(look.y, look.entering, retain_graph=True)
    for number, (tokens, slope) in enumerate(zip(look.entering, slopes, strict=True)):
        attended = look.maps()[number].mean((0, 1))
        for i in range(look.tokens):
            result[i] += float(tokens[0, i].detach() @ slope[0, i]) * (attended[i] if attentive else 1)
    return result


@every_anatomy
@pytest.mark.parametrize("attentive", [True, False])
def test_attcat(name, attentive, pixels):
    check(name, pixels, "attcat", attcat_by_hand, attentive=attentive)


def cdam_by_hand(look: Slow) -> Array:
    assert look.normed is not None
    (slope,) = torch.autograd.grad(look.y, [look.normed], retain_graph=True)
    return np.array([float(look.normed[0, i].detach() @ slope[0, i]) for i in range(look.tokens)])


@every_anatomy
def test_cdam(name, pixels):
    check(name, pixels, "cdam", cdam_by_hand)


def gmar_by_hand(look: Slow, norm: str) -> Array:
    fused = []
    for weights, gradient in zip(look.maps(), look.gradients(), strict=True):
        sizes = [np.abs(one).sum() if norm == "l1" else np.sqrt((one**2).sum()) for one in gradient]
        fused.append(sum(size / sum(sizes) * one for size, one in zip(sizes, weights, strict=True)))
    result = np.eye(look.tokens)
    for matrix in fused[: look.depth]:
        result = (0.5 * matrix + 0.5 * np.eye(look.tokens)) @ result
    if look.name in POOLED:
        return look.padded(fused[-1].mean(0)) @ result
    return sum(weight * result[token] for token, weight in look.read.items())


@every_anatomy
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_gmar(name, norm, pixels):
    check(name, pixels, "gmar", gmar_by_hand, norm=norm)


def test_gmar_of_one_head_is_rollout(pixels):
    """There is nothing to weigh."""
    model = lively(VisionTransformer(**{**SMALL, "num_heads": 1}))
    rolled = Explainer(model).explain(pixels, "rollout").relevance
    np.testing.assert_allclose(Explainer(model).explain(pixels, "gmar", TARGETS).relevance, rolled, rtol=1e-5)


def test_heads_weigh_alike_where_no_gradient_tells_them_apart(pixels, vit):
    with torch.no_grad():
        vit.head.weight[1] = 0
    rolled = Explainer(vit).explain(pixels, "rollout").relevance
    for norm in ("l1", "l2"):
        np.testing.assert_allclose(Explainer(vit).explain(pixels, "gmar", 1, norm=norm).relevance, rolled, rtol=1e-5)


def values_and_projections(look: Slow) -> list[tuple[Array, Array]]:
    """(v (H, N, Dv), W_O (H, D, Dv)) of every block, from its own layers."""
    found = []
    for block, tokens in zip(look.model.blocks, look.entering, strict=True):
        heads = block.attn.num_heads
        v = block.attn.qkv(block.norm1(tokens))[0].chunk(3, -1)[2]
        weight = block.attn.proj.weight
        if not isinstance(block.ls1, nn.Identity):
            weight = torch.diag(block.ls1.gamma) @ weight
        found.append(
            (
                v.unflatten(1, (heads, -1)).transpose(0, 1).detach().numpy(),
                weight.unflatten(1, (heads, -1)).transpose(0, 1).detach().numpy(),
            )
        )
    return found


def token_weights(before: Array, after: Array) -> Array:
    """(N, D) twice -> (N,)."""
    ratio = np.linalg.norm(after, axis=1) / np.linalg.norm(before, axis=1)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(before, after, strict=True)]
    return ratio * np.exp(cosines) / np.exp(cosines).mean()


def token_tm_by_hand(look: Slow) -> Array:
    entering, leaving, between = (
        [one[0].detach().numpy() for one in some] for some in (look.entering, look.leaving, look.between)
    )
    pairs = list(zip(look.maps(), look.gradients(), strict=True))
    relevance = np.diag(np.linalg.norm(entering[0], axis=1))
    for number, (values, projections) in enumerate(values_and_projections(look)):
        weights, gradient = pairs[number]
        mixed = np.zeros((look.tokens, look.tokens))
        for h in range(len(values)):
            changed = token_weights(entering[number], values[h] @ projections[h].T)
            mixed += np.maximum(weights[h] * gradient[h], 0) @ np.diag(changed) / len(values)
        relevance = relevance + mixed @ relevance
        passed = token_weights(between[number], leaving[number] - between[number])
        relevance = relevance + np.diag(passed) @ relevance
    if look.name in POOLED:
        return look.padded(positive(*pairs[-1]).mean(0)) @ relevance
    return sum(weight * relevance[token] for token, weight in look.read.items())


@some_anatomies
def test_token_tm(name, pixels):
    check(name, pixels, "token_tm", token_tm_by_hand)


@pytest.mark.parametrize(
    ("method", "options"), [("token_tm", {}), ("beyond_intuition", {"variant": "token", "start_layer": 0})]
)
def test_tokens_that_are_zero_have_no_length_to_compare_with(method, options, vit: Any, pixels):
    with torch.no_grad():
        vit.pos_embed.zero_()
        vit.patch_embed.proj.bias.zero_()
        vit.head.weight *= 1e4
    pixels = pixels.clone()
    pixels[:, :, :, :PATCH] = 0
    found = Explainer(vit).explain(pixels, method, 1, **options)
    assert np.isfinite(found.relevance).all() and 0 < found.relevance.max() < 1e12


def test_token_tm_needs_tokens_between_attention_and_mlp(pixels):
    model = lively(VisionTransformer(**SMALL, block_fn=ParallelScalingBlock))
    with pytest.raises(ModelError, match=r"tokens between attention and MLP.*gae"):
        Explainer(model).explain(pixels, "token_tm", 0)


# Along a path ---------------------------------------------------------------------------------------------------------


def path_gradient(look: Slow, target: int) -> Array:
    """Positive part of the mean gradient of the attention that the head reads through, mean over heads: (N, M)."""
    total = 0
    for alpha in np.linspace(0, 1, STEPS):
        total = total + slow(look.name, look.given, look.image * alpha, target).gradients()[-1]
    return np.maximum(total / STEPS, 0).mean(0)


def tam_by_hand(look: Slow, target: int, start_layer: int = 1) -> Array:
    fused = [one.mean(0) for one in look.maps()]
    weight, result = path_gradient(look, target), np.zeros(look.tokens)
    read = {0: 1.0} if look.name in POOLED else look.read
    for token, share in read.items():
        state = look.padded(fused[-1][token])
        for number in reversed(range(start_layer, look.depth if look.name in POOLED else look.depth - 1)):
            state = state @ fused[number] + state
        result += share * state * look.padded(weight[token])
    return result


def mixing(look: Slow, variant: str) -> list[Array]:
    """``Â`` of every attention."""
    if variant == "head":
        found = []
        for weights, gradient in zip(look.maps(), look.gradients(), strict=True):
            sizes = [np.abs(a.T @ g).mean() for a, g in zip(weights, gradient, strict=True)]
            found.append(sum(size / sum(sizes) * one for size, one in zip(sizes, weights, strict=True)))
        return found
    found = [one.mean(0) for one in look.maps()]
    for number, (values, projections) in enumerate(values_and_projections(look)):
        projected = sum(v @ w.T for v, w in zip(values, projections, strict=True))
        stretched = np.linalg.norm(projected, axis=1) / np.linalg.norm(look.entering[number][0].detach(), axis=1)
        found[number] = found[number] @ np.diag(stretched)
    return found


def beyond_intuition_by_hand(look: Slow, target: int, variant: str, start_layer: int) -> Array:
    mixed, weight = mixing(look, variant), path_gradient(look, target)
    relevance = np.eye(look.tokens)
    for matrix in mixed[start_layer : look.depth]:
        relevance = relevance + matrix @ relevance
    if look.name in POOLED:
        return look.padded(weight[0]) * (look.padded(mixed[-1]) @ relevance)[0]
    return sum(share * weight[token] * relevance[token] for token, share in look.read.items())


@every_anatomy
def test_tam(name, pixels):
    model = small(name)
    maps = Explainer(model).explain(pixels, "tam", TARGETS, steps=STEPS).relevance
    for image, target, found in zip(pixels, TARGETS, maps, strict=True):
        look = slow(name, model, image, target)
        agrees(found, look.patches(tam_by_hand(look, target)))


@some_anatomies
@pytest.mark.parametrize(("variant", "start"), [("head", 0), ("token", 1)])
def test_beyond_intuition(name, variant, start, pixels):
    model = small(name)
    maps = Explainer(model).explain(pixels, "beyond_intuition", TARGETS, steps=STEPS, variant=variant).relevance
    for image, target, found in zip(pixels, TARGETS, maps, strict=True):
        look = slow(name, model, image, target)
        agrees(found, look.patches(beyond_intuition_by_hand(look, target, variant, start)))


@pytest.mark.parametrize("start", [0, 2])
def test_paths_may_begin_elsewhere(start, pixels, vit):
    look = slow("class token", vit, pixels[0], 2)
    options = {"steps": STEPS, "start_layer": start}
    agrees(
        Explainer(vit).explain(pixels[:1], "tam", 2, **options).relevance[0], look.patches(tam_by_hand(look, 2, start))
    )
    for variant in ("head", "token"):
        found = Explainer(vit).explain(pixels[:1], "beyond_intuition", 2, variant=variant, **options).relevance[0]
        agrees(found, look.patches(beyond_intuition_by_hand(look, 2, variant, start)))


@pytest.mark.parametrize(
    ("method", "options", "start"),
    [("tam", {}, 4), ("beyond_intuition", {"variant": "head"}, 3), ("beyond_intuition", {"variant": "token"}, 6)],
)
def test_paths_begin_where_the_authors_code_does(method, options, start, pixels):
    """Of twelve blocks."""
    explainer = Explainer(lively(VisionTransformer(**{**SMALL, "depth": 12})))
    found = explainer.explain(pixels[:1], method, 1, steps=2, **options).relevance
    for number in (start - 1, start, start + 1):
        other = explainer.explain(pixels[:1], method, 1, steps=2, start_layer=number, **options).relevance
        assert np.array_equal(other, found) == (number == start)


@pytest.mark.parametrize("name", ["class token", "mean pooling", "attention pooling"])
def test_steps_in_many_looks_are_steps_in_one(name, pixels, monkeypatch):
    """However many points of the path a forward takes."""
    from vit_explain.inquiry import ModelInquiry

    model = small(name)
    expected = Explainer(model).explain(pixels, "tam", TARGETS, steps=5).relevance
    for room in (1, 3, 8):
        monkeypatch.setattr(ModelInquiry, "room", property(lambda _self, room=room: room))
        found = Explainer(model).explain(pixels, "tam", TARGETS, steps=5).relevance
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * expected.max())


def test_paths_say_how_far_they_are(pixels, vit):
    for method in PATHS:
        seen: list[tuple[int, int]] = []
        Explainer(vit).explain(
            pixels, method, 0, steps=5, progress=lambda done, total, seen=seen: seen.append((done, total))
        )
        assert seen[-1] == (5, 5) and seen == sorted(seen)


# What holds for all of them -------------------------------------------------------------------------------------------


def options_of(method: str) -> dict[str, Any]:
    return {"steps": STEPS} if method in PATHS else {}


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("name", ["class token", "mean pooling", "attention pooling"])
def test_swapping_two_classes_swaps_their_maps(name, method, pixels):
    model: Any = small(name)
    explainer, options = Explainer(model), options_of(method)
    before = explainer.explain(pixels, method, 1, **options).relevance
    other = explainer.explain(pixels, method, 2, **options).relevance
    assert np.abs(before - other).max() > 1e-3 * np.abs(before).max()
    with torch.no_grad():
        order = [0, 2, 1, 3]
        model.head.weight.copy_(model.head.weight[order])
        model.head.bias.copy_(model.head.bias[order])
    after = explainer.explain(pixels, method, 2, **options).relevance
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-7 * np.abs(before).max())


# How a map grows when all logits do: with them, or not at all.
DEGREES = {"gmar": 0, **dict.fromkeys(("grad_sam", "attn_gradcam", "ag_cam", "legrad", "attcat", "cdam", *PATHS), 1)}


@pytest.mark.parametrize("method", DEGREES)
def test_twice_the_logits(method, pixels, vit):
    explainer, options = Explainer(vit), options_of(method)
    before = explainer.explain(pixels, method, TARGETS, **options).relevance
    with torch.no_grad():
        vit.head.weight.mul_(2)
        vit.head.bias.mul_(2)
    after = explainer.explain(pixels, method, TARGETS, **options).relevance
    expected = before * 2 ** DEGREES[method]
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-6 * np.abs(before).max())


@pytest.mark.parametrize("method", ["attcat", "cdam"])
def test_a_contrast_is_the_difference_of_two_maps(method, pixels, vit):
    explainer = Explainer(vit)
    for_, against = (explainer.explain(pixels, method, target).relevance for target in (2, 0))
    found = explainer.explain(pixels, method, Contrast(2, 0)).relevance
    np.testing.assert_allclose(found, for_ - against, rtol=1e-4, atol=1e-5 * np.abs(for_).max())


@pytest.mark.parametrize("method", ALL)
def test_passes(method, pixels, vit, monkeypatch):
    """One forward where the theory asks no more; a path costs one a step, several images and steps at once."""
    images: list[int] = []
    plain = type(vit).forward
    monkeypatch.setattr(type(vit), "forward", lambda self, x: images.append(len(x)) or plain(self, x))
    Explainer(vit).explain(pixels[:2], method, 0, **options_of(method))
    assert images == ([2, 8] if method in PATHS else [2])


@pytest.mark.parametrize("method", ALL)
def test_several_classes_are_each_as_alone(method, pixels, vit):
    explainer, options = Explainer(vit), options_of(method)
    together = explainer.explain(pixels[:1], method, [2, 0], **options).relevance
    for row, target in enumerate((2, 0)):
        alone = explainer.explain(pixels[:1], method, target, **options).relevance[0]
        np.testing.assert_allclose(together[row], alone, rtol=1e-5, atol=1e-7 * np.abs(alone).max())


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("name", ["class token", "attention pooling"])
def test_models_that_compute_their_softmax_themselves(name, method, pixels):
    """The same maps, or a refusal where the scores before the softmax are needed."""
    model, options = small(name), options_of(method)
    expected = Explainer(model).explain(pixels, method, TARGETS, **options).relevance
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    if method == "ag_cam":
        with pytest.raises(ModelError, match="its scores are not known; use gae instead"):
            Explainer(model).explain(pixels, method, TARGETS)
        return
    found = Explainer(model).explain(pixels, method, TARGETS, **options).relevance
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("method", ["legrad", *PATHS])
def test_what_does_not_depend_on_the_picture_is_refused(method, pixels, vit):
    with pytest.raises(TargetError, match="nothing to explain"):
        Explainer(vit).explain(pixels, method, lambda output: torch.ones(len(output)), **options_of(method))


@pytest.mark.parametrize("method", ["gae", *PATHS])
@pytest.mark.parametrize("start", [3, -1])
def test_blocks_that_do_not_exist_are_refused(method, start, pixels, vit):
    with pytest.raises(OptionError, match=f"{method}: start_layer {start} does not exist; the model has blocks 0 to 2"):
        Explainer(vit).explain(pixels, method, 0, start_layer=start)


@pytest.mark.parametrize(("method", "options"), [("tam", {"steps": 1}), ("legrad", {"last": 0})])
def test_options_out_of_range_are_refused(method, options, pixels, vit):
    with pytest.raises(OptionError, match=f"{method}: {next(iter(options))} must be"):
        Explainer(vit).explain(pixels, method, 0, **options)
