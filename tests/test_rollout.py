"""Rollout and gradient rollout against slow derivations in numpy from attention read another way, and invariants."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from small_models import GRID, unfused_attention
from torch import Tensor

from vit_explain import Explainer, VITAttentionGradRollout, VITAttentionRollout
from vit_explain.errors import OptionError
from vit_explain.layer import Layer
from vit_explain.methods.gradient_rollout import gradient_rollout
from vit_explain.methods.rollout import rollout
from vit_explain.propagate import carry, discard_lowest, fuse, roll_out
from vit_explain.types import Anatomy, Readout, Trace

FUSIONS = ("mean", "min", "max")
RATIOS = (0.0, 0.3, 0.9, 0.999)


def fused_by_hand(heads: np.ndarray, fusion: str) -> np.ndarray:
    """(H, N, N) -> (N, N)."""
    return {"mean": heads.mean(0), "min": heads.min(0), "max": heads.max(0)}[fusion]


def rollout_by_hand(matrices: list[np.ndarray], ratio: float) -> np.ndarray:
    """The class token's row of the full product, entry by entry: (N,)."""
    n = len(matrices[0])
    result = np.eye(n)
    for matrix in matrices:
        matrix = np.maximum(matrix, 0).astype(np.float64)
        dropped = int(n * n * ratio)
        order = sorted((matrix[i, j], i, j) for i in range(n) for j in range(n))
        for value, i, j in order[:dropped]:
            # What equals the smallest kept entry is kept with it; the class token's own entry always is.
            if value < order[dropped][0] and (i, j) != (0, 0):
                matrix[i, j] = 0
        for i in range(n):
            matrix[i, i] += 1
            matrix[i] /= matrix[i].sum()
        result = matrix @ result
    return result[0]


@pytest.mark.parametrize(("fusion", "ratio"), list(itertools.product(FUSIONS, RATIOS)))
def test_rollout_is_the_product_by_hand(vit, pixels, fusion, ratio):
    attentions, _ = unfused_attention(vit, pixels, 0)
    maps = Explainer(vit).explain(pixels, head_fusion=fusion, discard_ratio=ratio).relevance
    for image, found in enumerate(maps):
        expected = rollout_by_hand([fused_by_hand(a[image].numpy(), fusion) for a in attentions], ratio)
        np.testing.assert_allclose(found, expected[1:].reshape(GRID), rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize(("fusion", "ratio"), list(itertools.product(FUSIONS, RATIOS)))
def test_gradient_rollout_is_the_product_by_hand(vit, pixels, fusion, ratio):
    attentions, gradients = unfused_attention(vit, pixels, 2)
    maps = Explainer(vit).explain(pixels, target=2, head_fusion=fusion, discard_ratio=ratio).relevance
    for image, found in enumerate(maps):
        weighted = [fused_by_hand((a * g)[image].numpy(), fusion) for a, g in zip(attentions, gradients, strict=True)]
        expected = rollout_by_hand(weighted, ratio)
        np.testing.assert_allclose(found, expected[1:].reshape(GRID), rtol=1e-3, atol=1e-6 * expected[1:].max())


def original_script(matrices: list[Tensor], ratio: float, spares_first: bool) -> np.ndarray:
    """The original script's loop over fused (1, N, N) matrices, line for line in what it computes."""
    n = matrices[0].shape[-1]
    result = torch.eye(n)
    for matrix in matrices:
        matrix = matrix.clone()
        flat = matrix.view(1, -1)
        _, indices = flat.topk(int(flat.size(-1) * ratio), -1, False)
        if spares_first:
            indices = indices[indices != 0]
        flat[0, indices] = 0
        a = (matrix + torch.eye(n)) / 2
        a = a / a.sum(dim=-1)
        result = torch.matmul(a, result)
    mask = result[0, 0, 1:].reshape(GRID).numpy()
    return mask / mask.max()


@pytest.mark.parametrize(("fusion", "ratio"), list(itertools.product(FUSIONS, (0.0, 0.3, 0.9))))
def test_legacy_rollout_is_the_original_script(vit, pixels, fusion, ratio):
    image = pixels[:1]
    attentions, _ = unfused_attention(vit, image, 0)
    fused = [{"mean": a.mean(1), "min": a.min(1)[0], "max": a.max(1)[0]}[fusion] for a in attentions]
    mask = VITAttentionRollout(vit, head_fusion=fusion, discard_ratio=ratio, legacy=True)(image)
    np.testing.assert_allclose(mask, original_script(fused, ratio, True), rtol=1e-5, atol=1e-7)


def score_gradients(model, image: Tensor, target: int) -> list[Tensor]:
    """∂logit/∂(scores before softmax), by autograd on the unfused path: where the original's hook really lands."""
    seen: list[Tensor] = []
    plain = torch.Tensor.softmax

    def softmax(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        self.retain_grad()
        seen.append(self)
        return plain(self, *args, **kwargs)

    for block in model.blocks:
        block.attn.fused_attn = False
    torch.Tensor.softmax = softmax  # type: ignore[assignment, method-assign]
    try:
        model(image)[0, target].backward()
    finally:
        torch.Tensor.softmax = plain  # type: ignore[method-assign]
        for block in model.blocks:
            block.attn.fused_attn = True
    model.zero_grad()
    return [scores.grad for scores in seen if scores.grad is not None]


@pytest.mark.parametrize("ratio", (0.0, 0.3, 0.9))
def test_legacy_gradient_rollout_is_the_original_script(vit, pixels, ratio):
    image = pixels[1:2]
    attentions, _ = unfused_attention(vit, image, 3)
    gradients = score_gradients(vit, image, 3)
    # The original collects attention in forward and gradients in backward order, and zips the two lists.
    fused = [(a * g).mean(1).clamp(min=0) for a, g in zip(attentions, reversed(gradients), strict=True)]
    for fusion in FUSIONS:  # taken, and ignored as the original does
        grad_rollout = VITAttentionGradRollout(vit, discard_ratio=ratio, head_fusion=fusion, legacy=True)
        mask = grad_rollout(image, category_index=3)
        np.testing.assert_allclose(mask, original_script(fused, ratio, False), rtol=1e-3, atol=1e-5)


def test_legacy_differs_from_the_corrected_arithmetic(vit, pixels):
    for method, target in (("rollout", None), ("gradient_rollout", 1)):
        maps = [
            Explainer(vit).explain(pixels, method, target, head_fusion="max", discard_ratio=0.5, legacy=legacy)
            for legacy in (False, True)
        ]
        assert np.abs(maps[0].relevance - maps[1].relevance).max() > 1e-3 * maps[0].relevance.max()


def test_legacy_needs_a_class_token(vit, pixels):
    from small_models import small

    model = small("mean pooling")
    with pytest.raises(OptionError, match="no class token"):
        Explainer(model).explain(pixels, legacy=True)


def test_the_original_interface(vit, pixels):
    rolled = VITAttentionRollout(vit, head_fusion="max", discard_ratio=0.9)(pixels[:1])
    assert rolled.shape == GRID and rolled.max() == 1 and rolled.dtype.kind == "f"
    weighted = VITAttentionGradRollout(vit, discard_ratio=0.9, head_fusion="max")(pixels[:1], category_index=2)
    assert weighted.shape == GRID and weighted.max() == 1
    # One object explains many images, and its first positional arguments are the original's.
    again = VITAttentionGradRollout(vit, "attn_drop", 0.9)
    first = again(pixels[:1], 2)
    again(pixels[1:2], 0)
    assert (again(pixels[:1], 2) == first).all()
    assert VITAttentionRollout(vit)(pixels).shape == (3, *GRID)


# Invariants ---------------------------------------------------------------------------------------------------------


def synthetic(n: int = 10, layers: int = 4, heads: int = 2, batch: int = 2, grid: tuple[int, int] = (3, 3)) -> Trace:
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(layers):
        weights = (torch.randn(batch, heads, n, n, generator=generator) * 2).softmax(-1)
        made.append(
            Layer(
                1.0,
                probabilities=weights,
                v=torch.randn(batch, heads, n, 4, generator=generator),
                grad_out=torch.randn(batch, heads, n, 4, generator=generator),
            )
        )
    anatomy = Anatomy(("",) * layers, grid, grid, n - grid[0] * grid[1], Readout(tokens=(0,)), features="")
    inquiry: Any = None  # nobody looks again
    return Trace(made, None, anatomy, torch.zeros(batch, 1, 1, 1), torch.zeros(batch, 2), inquiry)


@pytest.mark.parametrize(("fusion", "ratio"), list(itertools.product(FUSIONS, RATIOS)))
def test_rows_sum_to_one(fusion, ratio):
    """Every Ã is row-stochastic, so the carried row keeps its sum, whatever is fused and discarded."""
    trace = synthetic()
    row = roll_out(trace.layers, trace.read_row(), lambda layer, i, r: layer.attention(i, r), fusion, ratio, (0,))
    torch.testing.assert_close(row.sum(1), torch.ones(2))
    assert (row >= 0).all()


def test_the_vector_form_is_the_matrix_product():
    trace = synthetic()
    product = torch.eye(10, dtype=torch.float64)
    for layer in trace.layers:
        fused = layer.attention().double().mean(1)
        product = (0.5 * fused + 0.5 * torch.eye(10, dtype=torch.float64)) @ product
    for start in range(10):  # any read row, not the class token's alone
        row = torch.zeros(2, 10)
        row[:, start] = 1
        carried = roll_out(trace.layers, row, lambda layer, i, r: layer.attention(i, r), "mean", 0.0)
        torch.testing.assert_close(carried.double(), product[:, start], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", [rollout, gradient_rollout])
def test_a_dead_register_changes_nothing(method):
    """A token that nobody attends to, whatever it itself attends to, leaves the map as it was."""
    plain = synthetic()
    padded = synthetic()
    for layer in padded.layers:
        weights, v, grad = layer.probabilities, layer.v, layer.grad_out
        assert weights is not None and v is not None and grad is not None
        weights = torch.cat([weights[:, :, :1], torch.rand_like(weights[:, :, :1]).softmax(-1), weights[:, :, 1:]], 2)
        dead = torch.zeros_like(weights[..., :1])
        layer.probabilities = torch.cat([weights[..., :1], dead, weights[..., 1:]], 3)
        layer.v = torch.cat([v[:, :, :1], torch.randn_like(v[:, :, :1]), v[:, :, 1:]], 2)
        layer.grad_out = torch.cat([grad[:, :, :1], torch.zeros_like(grad[:, :, :1]), grad[:, :, 1:]], 2)
    padded.anatomy = Anatomy(padded.anatomy.blocks, (3, 3), (3, 3), 2, Readout(tokens=(0,)), features="")
    torch.testing.assert_close(method(padded), method(plain))


@pytest.mark.parametrize(("method", "fusion"), list(itertools.product((rollout, gradient_rollout), FUSIONS)))
def test_patches_may_come_in_any_order(method, fusion):
    """Permuting the patch tokens permutes the map, also where entries are discarded."""
    order = torch.randperm(9, generator=torch.Generator().manual_seed(4))
    tokens = torch.cat([torch.zeros(1, dtype=torch.long), order + 1])
    plain, shuffled = synthetic(), synthetic()
    for layer in shuffled.layers:
        assert layer.probabilities is not None and layer.v is not None and layer.grad_out is not None
        layer.probabilities = layer.probabilities[:, :, tokens][..., tokens]
        layer.v, layer.grad_out = layer.v[:, :, tokens], layer.grad_out[:, :, tokens]
    expected = method(plain, head_fusion=fusion, discard_ratio=0.6).flatten(1)[:, order]
    torch.testing.assert_close(method(shuffled, head_fusion=fusion, discard_ratio=0.6).flatten(1), expected)


def test_gradient_rollout_knows_the_class(vit, pixels):
    explainer = Explainer(vit)
    a, b = (explainer.explain(pixels, target=target).relevance for target in (0, 1))
    assert np.abs(a - b).max() > 0.1 * a.max()
    # Swapping the two classes' head weights swaps the maps.
    with torch.no_grad():
        order = [1, 0, 2, 3]
        vit.head.weight.copy_(vit.head.weight[order])
        vit.head.bias.copy_(vit.head.bias[order])
    np.testing.assert_allclose(explainer.explain(pixels, target=1).relevance, a, rtol=1e-5, atol=1e-9)


def test_discarding_keeps_what_equals_the_smallest_kept():
    matrix = torch.tensor([[[0.1, 0.2], [0.2, 0.3]]])
    assert discard_lowest(matrix.clone(), 0.5).equal(matrix.masked_fill(matrix < 0.2, 0))
    assert discard_lowest(matrix.clone(), 0.5, (0,))[0, 0, 0] == matrix[0, 0, 0]
    assert discard_lowest(matrix.clone(), 0.1).equal(matrix)
    uniform = torch.full((1, 4, 4), 0.25)
    assert discard_lowest(uniform.clone(), 0.9).equal(uniform)


def test_fuse_and_carry_on_numbers_one_can_check():
    heads = torch.tensor([[[[0.2, 0.8]], [[0.6, 0.4]]]])
    assert fuse(heads, "mean").tolist() == [[[pytest.approx(0.4), pytest.approx(0.6)]]]
    assert fuse(heads, "max").tolist() == [[[pytest.approx(0.6), pytest.approx(0.8)]]]
    assert fuse(heads, "min").tolist() == [[[pytest.approx(0.2), pytest.approx(0.4)]]]
    # Row 1 of Ã for M = [0.5, 0.5]: (0.25, 0.75).
    assert carry(torch.tensor([[1.0]]), torch.tensor([[[0.5, 0.5]]]), first=1).tolist() == [[0.25, 0.75]]
