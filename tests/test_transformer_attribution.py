"""Transformer attribution and partial LRP against relevance shared out contribution by contribution, and invariants."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from small_models import GRID, MODELS, small, unfused_attention
from torch import Tensor, nn

from vit_explain import Explainer
from vit_explain.errors import ModelError, OptionError, TargetError
from vit_explain.family import family_of
from vit_explain.inquiry import Subject
from vit_explain.layer import ALL
from vit_explain.relevance_rules import attention_relevance, sum_rule
from vit_explain.relprop import RelevanceMode, relevances
from vit_explain.targets import Contrast, Target
from vit_explain.types import Trace

TARGETS = (0, 1, 3)
# The rules differ between them: one token read, with LayerScale and registers, or all of them averaged.
BY_HAND = ("class token", "registers", "mean pooling")
Array = NDArray[np.float64]


def traced(model: nn.Module, pixels: Tensor) -> Trace:
    family = family_of(model)
    subject = Subject(model, family, family.anatomy(model, tuple(pixels.shape[1:])))
    needs = frozenset({"attention", "gradient"})
    with torch.no_grad():
        trace, output = subject.look(pixels, needs)
        targets = [Target("", TARGETS[image]) for image in range(len(pixels))]
        return subject.about(trace, output, targets, needs, keep_graph=False)


# By hand, one image at a time ---------------------------------------------------------------------------------------


@dataclass
class Rules:
    """Which of the two sets of rules: the method's, or those of its baselines."""

    joint: bool = True
    renormalised: bool = True


def shared(relevance: Array, contributions: Array, axis: int) -> Array:
    """Every contribution's part of the relevance, which it has to share along the axis."""
    total = contributions.sum(axis, keepdims=True)
    relevance = np.expand_dims(relevance, axis)
    return np.divide(contributions, total, out=np.zeros_like(contributions), where=total != 0) * relevance


def through_linear(relevance: Array, x: Array, layer: nn.Linear, rules: Rules) -> Array:
    """(tokens, out) -> (tokens, in)."""
    weight = layer.weight.detach().numpy()
    below = np.zeros_like(x)
    for token in range(len(x)):
        contributions = x[token] * weight  # (out, in)
        positive = np.maximum(contributions, 0)
        if rules.joint:
            parts = [positive]
        else:
            parts = [np.where(weight > 0, positive, 0), np.where(weight < 0, positive, 0)]
        below[token] = sum(shared(relevance[token], part, 1).sum(0) for part in parts)
    return below


def through_sum(relevance: Array, left: Array, right: Array, rules: Rules) -> tuple[Array, Array]:
    first, second = shared(relevance, np.stack([left, right]), 0)
    if rules.renormalised:
        both = abs(first.sum()) + abs(second.sum())
        first, second = (part / part.sum() * (abs(part.sum()) / both * relevance.sum()) for part in (first, second))
    return first, second


def normalised(x: Array, layer: nn.LayerNorm) -> Array:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
    return y * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def linear(x: Array, layer: nn.Linear) -> Array:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def scaled(x: Array, layer: nn.Module) -> Array:
    return x if isinstance(layer, nn.Identity) else x * layer.gamma.detach().numpy()  # type: ignore[operator]


class BlockByHand:
    """One block of a plain ViT on one image: what happened in it, and how relevance goes back through it."""

    def __init__(self, block: Any, x: Array) -> None:
        self.block, self.x = block, x
        tokens, width = x.shape
        self.heads, self.size = block.attn.num_heads, width // block.attn.num_heads
        self.normed = normalised(x, block.norm1)
        qkv = linear(self.normed, block.attn.qkv).reshape(tokens, 3, self.heads, self.size)
        self.q, self.k, self.v = (qkv[:, which].swapaxes(0, 1) for which in range(3))  # (heads, tokens, size) each
        scores = self.q @ self.k.swapaxes(1, 2) / np.sqrt(self.size)
        self.attention = np.exp(scores - scores.max(-1, keepdims=True))
        self.attention /= self.attention.sum(-1, keepdims=True)
        self.mixed = (self.attention @ self.v).swapaxes(0, 1).reshape(tokens, width)
        self.branch = scaled(linear(self.mixed, block.attn.proj), block.ls1)
        self.middle = x + self.branch
        self.normed_again = normalised(self.middle, block.norm2)
        hidden = torch.from_numpy(linear(self.normed_again, block.mlp.fc1))
        self.hidden = F.gelu(hidden).numpy()
        self.mlp = scaled(linear(self.hidden, block.mlp.fc2), block.ls2)
        self.out = self.middle + self.mlp

    def back(self, relevance: Array, rules: Rules) -> tuple[Array, Array]:
        """(relevance of the block's input, of its attention (heads, tokens, tokens))."""
        beside, mlp = through_sum(relevance, self.middle, self.mlp, rules)
        hidden = through_linear(mlp, self.hidden, self.block.mlp.fc2, rules)
        middle = beside + through_linear(hidden, self.normed_again, self.block.mlp.fc1, rules)
        beside, branch = through_sum(middle, self.x, self.branch, rules)
        mixed = through_linear(branch, self.mixed, self.block.attn.proj, rules)
        found = [self.attention_back(mixed, head) for head in range(self.heads)]
        of_qkv = np.stack([np.stack([one[which] for one in found], 1) for which in (1, 2, 3)], 1)
        qkv = of_qkv.reshape(len(self.x), -1)
        return beside + through_linear(qkv, self.normed, self.block.attn.qkv, rules), np.stack([f[0] for f in found])

    def attention_back(self, relevance: Array, head: int) -> tuple[Array, Array, Array, Array]:
        """(of A, of q, of k, of v), one head; every term of the two products by itself."""
        a, q, k, v = self.attention[head], self.q[head], self.k[head], self.v[head]
        relevance = relevance[:, head * self.size : (head + 1) * self.size]
        terms = shared(relevance, a[:, :, None] * v[None], 1) / 2  # (queries, keys, size)
        of_a, of_v = terms.sum(2), terms.sum(0)
        terms = shared(of_a, q[:, None] * k[None], 2) / 2
        return of_a, terms.sum(1), terms.sum(0), of_v


def relevance_by_hand(model: Any, image: Tensor, target: int, rules: Rules) -> list[Array]:
    """Relevance of A of every block, (heads, tokens, tokens), in double precision."""
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        x = model._pos_embed(model.patch_embed(image[None].double()))[0].numpy()
    blocks = []
    for block in model.blocks:
        blocks.append(BlockByHand(block, x))
        x = blocks[-1].out
    relevance = np.zeros_like(x)
    start = np.eye(model.num_classes)[[target]]
    if model.global_pool == "avg":
        pooled = normalised(x.mean(0, keepdims=True), model.fc_norm)
        relevance[:] = shared(through_linear(start, pooled, model.head, rules)[0], x, 0)
    else:
        relevance[0] = through_linear(start, normalised(x[:1], model.norm), model.head, rules)[0]
    found = []
    for block in reversed(blocks):
        relevance, of_attention = block.back(relevance, rules)
        found.append(of_attention)
    return found[::-1]


def close(found: NDArray[Any], expected: Array, tolerance: float = 3e-3) -> None:
    """Terms that nearly cancel are divided by what is left of them, so single precision is felt everywhere."""
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("rules", (Rules(), Rules(renormalised=False), Rules(joint=False, renormalised=False)))
def test_relevance_of_attention_is_that_by_hand(name, rules, pixels):
    model = small(name)
    seen = relevances(traced(model, pixels), RelevanceMode(joint=rules.joint, renormalised=rules.renormalised))
    for image, target in enumerate(TARGETS):
        expected = relevance_by_hand(model, pixels[image], target, rules)
        for layer, one in zip(seen.layers, expected, strict=True):
            close(attention_relevance(layer, ALL, ALL)[image].numpy(), one)


@pytest.mark.parametrize("method", ["transformer_attribution", "partial_lrp"])
def test_half_precision_is_warned_of(method, pixels):
    model: Any = small("mean pooling")
    assert not any(Explainer(model).explain(pixels, method, 1).warnings)
    found = Explainer(model.bfloat16()).explain(pixels.bfloat16(), method, 1)
    assert all("in bfloat16" in warnings[0] for warnings in found.warnings)


def test_relevance_of_attention_leaves_what_was_recorded(vit: Any, pixels):
    """Where a model computes its own softmax, its attention is not derived anew for every caller."""
    for block in vit.blocks:
        block.attn.fused_attn = False
    layer = relevances(traced(vit, pixels), RelevanceMode()).layers[-1]
    first = attention_relevance(layer, ALL, ALL)
    torch.testing.assert_close(attention_relevance(layer, ALL, ALL), first)
    torch.testing.assert_close(layer.attention().sum(-1), torch.ones(layer.shape[:3]))


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("start_layer", (0, 1, 2))
def test_transformer_attribution_is_the_product_by_hand(name, start_layer, pixels):
    model = small(name)
    explained = Explainer(model).explain(pixels, "transformer_attribution", list(TARGETS), start_layer=start_layer)
    for image, target in enumerate(TARGETS):
        _, gradients = unfused_attention(model, pixels[image : image + 1], target)
        product = np.eye(gradients[0].shape[-1])
        relevance = relevance_by_hand(model, pixels[image], target, Rules())
        for one, gradient in list(zip(relevance, gradients, strict=True))[start_layer:]:
            weighted = np.maximum(one * gradient[0].numpy(), 0).mean(0)
            product = product + weighted @ product
        rows = product[-GRID[0] * GRID[1] :] if name == "mean pooling" else product[:1]
        # The identity's part of a mean over patches is the same for all of them.
        own = 1 / len(rows) if name == "mean pooling" else 0
        close(explained.relevance[image], rows.mean(0)[-GRID[0] * GRID[1] :].reshape(GRID) - own)


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("legacy", (False, True))
def test_partial_lrp_is_the_last_layers_relevance_by_hand(name, legacy, pixels):
    model = small(name)
    explained = Explainer(model).explain(pixels, "partial_lrp", list(TARGETS), legacy=legacy)
    for image, target in enumerate(TARGETS):
        relevance = relevance_by_hand(model, pixels[image], target, Rules(not legacy, renormalised=False))[-1]
        rows = np.maximum(relevance, 0).mean(0)[slice(None) if name == "mean pooling" else slice(1)]
        close(explained.relevance[image], rows.mean(0)[-GRID[0] * GRID[1] :].reshape(GRID))


@pytest.mark.parametrize("name", ("attention pooling", "attention pooling beside a class token"))
def test_a_pooling_attention_is_the_last_factor(name, pixels):
    model = small(name)
    trace = traced(model, pixels)
    seen = relevances(trace, RelevanceMode())
    calls = [*zip(trace.layers, seen.layers, strict=True), (trace.pool, seen.pool)]
    found = [
        (attention_relevance(relevance, ALL, ALL) * layer.attention_gradient()).clamp(min=0).mean(1).double()
        for layer, relevance in calls
        if layer is not None and relevance is not None
    ]
    product = found.pop()
    product = F.pad(product, (trace.length - product.shape[-1], 0))
    for one in reversed(found):
        product = product + product @ one
    explained = Explainer(model).explain(pixels, "transformer_attribution", list(TARGETS)).relevance
    expected = product.mean(1)[:, trace.anatomy.prefix :].unflatten(1, GRID).numpy()
    np.testing.assert_allclose(explained, expected, rtol=1e-4)


# Invariants ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("renormalised", (True, False))
@pytest.mark.parametrize("name", MODELS)
def test_relevance_is_conserved(name, renormalised, pixels):
    """Whatever a rule shares out, it shares out whole, so the class's relevance of 1 enters every block.

    A pooling attention's learned queries are parameters: their quarter (half of half) of the relevance that its output
    gets ends there, and what its scores and values got goes on.
    """
    seen = relevances(traced(small(name), pixels), RelevanceMode(renormalised=renormalised))
    whole = torch.ones(3)
    if seen.pool is not None:
        assert seen.pool.grad_out is not None
        whole -= seen.pool.grad_out.sum((1, 2, 3)) / 4
    for tokens in seen.token_gradients:
        torch.testing.assert_close(tokens.sum((1, 2)), whole, rtol=0, atol=2e-3)
    for layer in (*seen.layers, *([seen.pool] if seen.pool else [])):
        assert layer.grad_out is not None
        half = attention_relevance(layer, ALL, ALL).sum((1, 2, 3))
        torch.testing.assert_close(half, layer.grad_out.sum((1, 2, 3)) / 2, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_attention_spelled_out_has_the_same_relevance(name, pixels):
    """One rule for the fused operation, and those for its parts, must agree."""
    model: Any = small(name)
    fused = relevances(traced(model, pixels), RelevanceMode())
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    parts = relevances(traced(model, pixels), RelevanceMode())
    for one, other in zip(fused.token_gradients, parts.token_gradients, strict=True):
        close(one.numpy(), other.numpy())


@pytest.mark.parametrize("method", ("transformer_attribution", "partial_lrp"))
def test_swapping_classes_swaps_maps(method, vit: Any, pixels):
    plain = Explainer(vit).explain(pixels, method, [[0, 2]] * 3).relevance
    with torch.no_grad():
        vit.head.weight[[0, 2]] = vit.head.weight[[2, 0]]
        vit.head.bias[[0, 2]] = vit.head.bias[[2, 0]]
    swapped = Explainer(vit).explain(pixels, method, [[2, 0]] * 3).relevance
    np.testing.assert_array_equal(swapped, plain)
    assert np.abs(plain[::2] - plain[1::2]).max() > 0.1 * plain.max()


def test_images_of_a_batch_share_nothing():
    """Sums over a batch, as in the original code, would let one image's relevance scale another's."""
    generator = torch.Generator().manual_seed(5)
    left, right, relevance = torch.randn(3, 4, 6, 5, generator=generator)
    together = sum_rule(relevance, left, right, renormalised=True)
    for image in range(4):
        one = slice(image, image + 1)
        alone = sum_rule(relevance[one], left[one], right[one], renormalised=True)
        for part, whole in zip(alone, together, strict=True):
            torch.testing.assert_close(part, whole[one])


@pytest.mark.parametrize("name", ("class token", "attention pooling", "eva with rotary positions"))
def test_what_lies_below_is_left_out_without_loss(name, pixels):
    """Relevance may stop at any block: what was found above stays what it was."""
    trace = traced(small(name), pixels)
    whole = relevances(trace, RelevanceMode())
    for first in (1, 2, 3):
        part = relevances(trace, RelevanceMode(first))
        for number, (one, other) in enumerate(zip(whole.token_gradients, part.token_gradients, strict=True)):
            if number >= first:
                assert torch.equal(one, other)
            elif number < first - 1:
                assert not other.any()


@pytest.mark.parametrize("method", ("transformer_attribution", "partial_lrp"))
def test_frozen_models_have_the_same_maps_and_nothing_is_left_behind(method, vit, pixels):
    with torch.no_grad():
        before = vit(pixels)
    plain = Explainer(vit).explain(pixels, method, 1).relevance
    assert all(parameter.grad is None and parameter.requires_grad for parameter in vit.parameters())
    np.testing.assert_array_equal(Explainer(vit.requires_grad_(False)).explain(pixels, method, 1).relevance, plain)
    with torch.no_grad():
        assert torch.equal(vit(pixels), before)


def test_weights_of_a_class_may_be_any_that_are_not_negative(vit, pixels):
    explainer = Explainer(vit)
    for method in ("transformer_attribution", "partial_lrp"):
        plain = explainer.explain(pixels, method, 2).relevance
        function = explainer.explain(pixels, method, lambda output: output[:, 2]).relevance
        np.testing.assert_array_equal(function, plain)
        with pytest.raises(TargetError, match=r"the target must be a class.* gae, attn_lrp"):
            explainer.explain(pixels, method, Contrast(2, 1))
        with pytest.raises(TargetError, match="the target must be a class"):
            explainer.explain(pixels, method, lambda output: output.log_softmax(-1)[:, 2])


def test_start_layer_must_exist(vit, pixels):
    explain = partial(Explainer(vit).explain, pixels, "transformer_attribution", 0)
    for wrong in (3, -1):
        with pytest.raises(OptionError, match=f"start_layer {wrong} does not exist; the model has blocks 0 to 2"):
            explain(start_layer=wrong)
    maps = [explain(start_layer=start).relevance for start in range(3)]
    assert all((one != other).any() for one, other in itertools.pairwise(maps))


def test_operations_without_a_rule_are_refused_by_name(vit: Any, pixels):
    class Wave(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x)

    vit.blocks[2].mlp.act = Wave()
    for method in ("transformer_attribution", "partial_lrp"):
        with pytest.raises(ModelError, match=r"no rule for torch.sin, .* gae, attn_lrp"):
            Explainer(vit).explain(pixels, method, 0)
    assert Explainer(vit).explain(pixels, "gradient_rollout", 0).relevance.any()
