"""Gradient methods against loops over plain autograd, closed forms of linear models, and completeness."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_models import CLASSES, GRID, PATCH, SIZE, SMALL, lively, small
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vit_explain import Explainer
from vit_explain.errors import OptionError
from vit_explain.methods.fullgrad import BiasTap
from vit_explain.pixel_paths import blurred
from vit_explain.types import Anatomy, Readout

Array = NDArray[Any]
ANATOMIES = ("class token", "mean pooling", "eva with rotary positions")
METHODS = (
    "saliency",
    "input_x_gradient",
    "smoothgrad",
    "vargrad",
    "integrated_gradients",
    "expected_gradients",
    "fullgrad",
)
SUMMED = ("input_x_gradient", "integrated_gradients", "expected_gradients", "fullgrad")
FEW: dict[str, dict[str, int]] = {
    "smoothgrad": {"samples": 5},
    "vargrad": {"samples": 5},
    "integrated_gradients": {"steps": 7},
    "expected_gradients": {"samples": 5},
}


def calm(model: nn.Module) -> nn.Module:
    """Weights so small that scores change smoothly on the way to an image, as a trained model's do."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 0.5
    return model


def gradient_by_hand(model: nn.Module, point: Tensor, target: int) -> Tensor:
    """∂logit/∂x (C, H, W) of one image, by an ordinary backward."""
    point = point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(point[None])[0, target], point)
    return gradient


def score_by_hand(model: nn.Module, point: Tensor, target: int) -> float:
    with torch.no_grad():
        return float(model(point[None])[0, target])


def on_patches(per_pixel: Array, how: str) -> Array:
    """(H, W) -> the grid, patch by patch."""
    out = np.zeros(GRID)
    for row, column in np.ndindex(*GRID):
        patch = per_pixel[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
        out[row, column] = patch.sum() if how == "sum" else patch.mean()
    return out


def noise_by_hand(image: Tensor, share: float, samples: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sigma = share * (image.max() - image.min())
    return [image + sigma * torch.randn(image.shape, generator=generator) for _ in range(samples)]


def per_pixel_by_hand(name: str, model: nn.Module, image: Tensor, target: int) -> Array:
    """(H, W) of one image, as the papers write it."""
    if name == "saliency":
        return gradient_by_hand(model, image, target).abs().amax(0).numpy()
    if name == "input_x_gradient":
        return (image * gradient_by_hand(model, image, target)).sum(0).numpy()
    gradients = [gradient_by_hand(model, point, target) for point in noise_by_hand(image, 0.15, 5, seed=3)]
    if name == "smoothgrad":
        return np.abs(sum(g.numpy().astype(float) for g in gradients) / 5).max(0)
    return np.var([g.numpy().astype(float) for g in gradients], 0).sum(0)


@pytest.mark.parametrize("anatomy", ANATOMIES)
@pytest.mark.parametrize("name", ["saliency", "input_x_gradient", "smoothgrad", "vargrad"])
def test_gradient_maps_by_hand(name, anatomy, pixels):
    model = small(anatomy)
    options: dict[str, Any] = {"samples": 5, "seed": 3} if name in FEW else {}
    targets = [3, 0, 2]
    fine = Explainer(model).explain(pixels, name, targets, level="pixels", **options).relevance
    coarse = Explainer(model).explain(pixels, name, targets, **options).relevance
    assert fine.shape == (3, *SIZE)
    for image, target in enumerate(targets):
        expected = per_pixel_by_hand(name, model, pixels[image], target)
        np.testing.assert_allclose(fine[image], expected, rtol=2e-3, atol=1e-5 * np.abs(expected).max())
        expected = on_patches(expected, "sum" if name in SUMMED else "mean")
        np.testing.assert_allclose(coarse[image], expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())


def path_integral_by_hand(model: nn.Module, image: Tensor, start: Tensor, target: int, points: int = 2000) -> Array:
    """(H, W): a fine midpoint sum."""
    total = torch.zeros(image.shape, dtype=torch.double)
    for alphas in ((torch.arange(points) + 0.5) / points).split(200):
        along = (start + alphas.view(-1, 1, 1, 1) * (image - start)).requires_grad_()
        (gradients,) = torch.autograd.grad(model(along)[:, target].sum(), along)
        total += gradients.double().sum(0) / points
    return ((image - start) * total).sum(0).numpy()


def blurred_by_hand(image: Tensor, sigma: float) -> Tensor:
    """Every pixel as a weighted mean of all of its row, then of all of its column."""
    array = image.double().numpy()
    for axis in (1, 2):
        lines = np.moveaxis(array, axis, 0)
        out = np.zeros_like(lines)
        for here in range(len(lines)):
            weights = np.array([np.exp(-((here - there) ** 2) / (2 * sigma**2)) for there in range(len(lines))])
            out[here] = sum(weight * line for weight, line in zip(weights / weights.sum(), lines, strict=True))
        array = np.moveaxis(out, 0, axis)
    return torch.from_numpy(array).float()


@pytest.mark.parametrize("anatomy", ANATOMIES)
@pytest.mark.parametrize("baseline", ["zero", "blur"])
def test_integrated_gradients_are_the_integral(baseline, anatomy, pixels):
    model = calm(small(anatomy))
    found = Explainer(model).explain(pixels, "integrated_gradients", 1, steps=150, baseline=baseline, level="pixels")
    for image in range(3):
        start = torch.zeros_like(pixels[image]) if baseline == "zero" else blurred_by_hand(pixels[image], SIZE[1] / 20)
        expected = path_integral_by_hand(model, pixels[image], start, 1)
        np.testing.assert_allclose(found.relevance[image], expected, atol=5e-3 * np.abs(expected).max())
        difference = score_by_hand(model, pixels[image], 1) - score_by_hand(model, start, 1)
        assert found.facts["y_difference"][image] == pytest.approx(difference, rel=1e-3, abs=1e-5)


def test_integrated_gradients_take_few_steps_exactly(vit, pixels):
    """Two Gauss-Legendre points by hand: at 1/2 ± 1/√12, weighted alike."""
    found = Explainer(vit).explain(pixels, "integrated_gradients", 2, steps=2).relevance
    for image in range(3):
        gradients = [gradient_by_hand(vit, pixels[image] * (0.5 + s / 12**0.5), 2) for s in (-1, 1)]
        expected = on_patches((pixels[image] * sum(gradients) / 2).sum(0).numpy(), "sum")
        np.testing.assert_allclose(found[image], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("level", ["patches", "pixels"])
def test_integrated_gradients_are_complete(model, pixels, level):
    """On every anatomy and at both levels the map adds up to what the score gained."""
    found = Explainer(calm(model)).explain(pixels, "integrated_gradients", [0, 1, 3], steps=100, level=level)
    with torch.no_grad():
        gained = (model(pixels) - model(torch.zeros_like(pixels)))[torch.arange(3), torch.tensor([0, 1, 3])].numpy()
    np.testing.assert_allclose(found.facts["y_difference"], gained, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.relevance.sum((1, 2)), gained, rtol=2e-3, atol=2e-3)
    assert found.facts["completeness_gap"].max() < 0.05 and found.warnings == [[], [], []]


def test_too_few_steps_are_told(vit, pixels):
    found = Explainer(vit).explain(pixels, "integrated_gradients", 1, steps=1)
    gaps = np.abs(found.relevance.sum((1, 2)) - found.facts["y_difference"]) / np.abs(found.facts["y_difference"])
    np.testing.assert_allclose(found.facts["completeness_gap"], gaps, rtol=1e-3)
    assert gaps.max() > 0.05
    for gap, said in zip(gaps, found.warnings, strict=True):
        assert len(said) == (gap > 0.05)
        assert all(f"completeness gap {gap:.0%}" in one and "take more steps" in one for one in said)


@pytest.mark.parametrize(
    ("name", "option", "limit"), [("integrated_gradients", "steps", 0.05), ("expected_gradients", "samples", 0.25)]
)
def test_gaps_above_what_the_docs_say_are_told(name, option, limit, vit, pixels):
    explainer, gaps = Explainer(calm(vit)), []
    for number in (1, 2, 5, 10):
        found = explainer.explain(pixels, name, 1, **{option: number})
        gaps += list(found.facts["completeness_gap"])
        assert [bool(said) for said in found.warnings] == [gap > limit for gap in found.facts["completeness_gap"]]
    assert min(gaps) < limit and any(limit < gap < 4 * limit for gap in gaps), "otherwise any limit would do"


@pytest.mark.parametrize("baseline", ["colour", "noise", "blur"])
def test_expected_gradients_by_hand(vit, pixels, baseline):
    samples, seed = 6, 11
    found = Explainer(vit).explain(
        pixels, "expected_gradients", 1, samples=samples, seed=seed, baseline=baseline, level="pixels"
    )
    for image in range(3):
        generator = torch.Generator().manual_seed(seed)
        total, reached = np.zeros(SIZE), []
        for sample in range(samples):
            alpha, share = torch.rand(2, generator=generator).tolist()
            alpha = (sample + alpha) / samples
            if baseline == "blur":
                start = blurred_by_hand(pixels[image], (0.02 + 0.08 * share) * SIZE[1])
            elif baseline == "noise":
                start = torch.randn(3, *SIZE, generator=generator)
            else:
                start = torch.randn(3, generator=generator)[:, None, None].expand(3, *SIZE)
            gradient = gradient_by_hand(vit, start + alpha * (pixels[image] - start), 1)
            total += ((pixels[image] - start) * gradient).sum(0).numpy() / samples
            reached.append(score_by_hand(vit, start, 1))
        np.testing.assert_allclose(found.relevance[image], total, rtol=2e-3, atol=1e-4 * np.abs(total).max())
        difference = score_by_hand(vit, pixels[image], 1) - np.mean(reached)
        assert found.facts["y_difference"][image] == pytest.approx(difference, rel=1e-3, abs=1e-4)


def test_expected_gradients_approach_completeness(vit, pixels):
    found = Explainer(vit).explain(pixels[:1], "expected_gradients", 1, samples=2000)
    few = Explainer(vit).explain(pixels[:1], "expected_gradients", 1, samples=2)
    error, before = (np.abs(one.relevance.sum() - one.facts["y_difference"][0]) for one in (found, few))
    assert error < 0.1 * before
    assert [bool(said) for said in few.warnings] == [bool(few.facts["completeness_gap"][0] > 0.25)]


def test_blur_keeps_flat_images_and_means_of_far_pixels_apart():
    flat = torch.full((1, 3, *SIZE), 0.7)
    torch.testing.assert_close(blurred(flat, 3.0), flat)
    point = torch.zeros(1, 1, 41, 41)
    point[0, 0, 20, 20] = 1
    spread = blurred(point, 2.0)[0, 0]
    torch.testing.assert_close(spread.sum(), torch.tensor(1.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(spread[20, 22] / spread[20, 20], torch.tensor(np.exp(-0.5), dtype=torch.float32))


# Linear models: everything has a closed form ------------------------------------------------------------------------


def linear(activation: type[nn.Module] = nn.Identity, distilled: bool = False, **options: Any) -> nn.Module:
    """A ViT whose norms do nothing and whose attention is constant: affine, or piecewise so with a ReLU."""
    kind = VisionTransformerDistilled if distilled else VisionTransformer
    model = kind(**{**SMALL, **options}, norm_layer=nn.Identity, act_layer=activation)
    lively(model)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[:48] = 0
    return model


def slope(model: nn.Module, target: int) -> tuple[Tensor, float]:
    """(w, b) of y = w · x + b, from the scores of unit pixels."""
    units = torch.eye(3 * SIZE[0] * SIZE[1]).view(-1, 3, *SIZE)
    with torch.no_grad():
        bias = model(torch.zeros(1, 3, *SIZE))[0, target].double()
        rows = torch.cat([model(part)[:, target] for part in units.split(480)]).double() - bias
    return rows.view(3, *SIZE).float(), float(bias)


def test_linear_models_have_closed_forms(pixels):
    model = linear()
    weight, bias = slope(model, 2)
    explainer = Explainer(model)

    def found(name: str, **options: object) -> Tensor:
        return torch.from_numpy(explainer.explain(pixels, name, 2, level="pixels", **options).relevance)

    def check(actual: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(actual, expected.expand_as(actual), rtol=1e-3, atol=1e-4 * float(weight.abs().max()))

    check(found("saliency"), weight.abs().amax(0))
    check(found("smoothgrad", samples=3), weight.abs().amax(0))
    check(found("vargrad", samples=3), torch.zeros(SIZE))
    check(found("input_x_gradient"), (weight * pixels).sum(1))
    check(found("integrated_gradients", steps=1), (weight * pixels).sum(1))
    smooth = blurred(pixels, SIZE[1] / 20)
    check(found("integrated_gradients", steps=3, baseline="blur"), (weight * (pixels - smooth)).sum(1))
    # One α or many: only where the baselines are matters.
    generator = torch.Generator().manual_seed(0)
    colours = []
    for _ in range(4):
        torch.rand(2, generator=generator)
        colours.append(torch.randn(3, 1, 1, generator=generator))
    mean = sum(colours) / 4
    check(found("expected_gradients", samples=4), (weight * (pixels - mean)).sum(1))
    whole = explainer.explain(pixels, "expected_gradients", 2, samples=4)
    assert whole.facts["completeness_gap"].max() < 1e-3 and whole.warnings == [[], [], []]
    everything = explainer.explain(pixels, "fullgrad", 2)
    assert everything.facts["completeness_gap"].max() < 1e-3
    assert abs(bias) > 0.01


# FullGrad -----------------------------------------------------------------------------------------------------------

PIECEWISE: dict[str, dict[str, Any]] = {
    "class token": {},
    "registers, layer scale": {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5},
    "mean pooling": {"class_token": False, "global_pool": "avg"},
    "dynamic size": {"dynamic_img_size": True},
    "two heads": {"distilled": True},
}


@pytest.mark.parametrize("options", PIECEWISE.values(), ids=PIECEWISE)
@pytest.mark.parametrize("frozen", [False, True])
def test_fullgrad_is_complete_for_piecewise_linear_models(options, frozen, pixels):
    model = linear(nn.ReLU, **options).requires_grad_(not frozen)
    found = Explainer(model).explain(pixels, "fullgrad", [0, 1, 3])
    assert found.facts["completeness_gap"].max() < 1e-3
    # Not by input × gradient alone.
    alone = Explainer(model).explain(pixels, "input_x_gradient", [0, 1, 3]).relevance.sum((1, 2))
    assert np.abs(alone / found.logits[range(3), [0, 1, 3]] - 1).max() > 0.05


def watched(model: nn.Module, image: Tensor, target: int) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Name -> (input, its gradient, output, its gradient) of every module in the forward, without the batch."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def see(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            given = inputs[0]
            given.retain_grad()
            out.retain_grad()
            seen[name] = (given, out)

        return hook

    hooks = [
        part.register_forward_hook(see(name))
        for name, part in model.named_modules()
        if isinstance(part, (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GELU)) or name.endswith("attn")
    ]
    try:
        model(image[None].requires_grad_())[0, target].backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad()
    zero = torch.zeros(())
    return {
        name: (
            given.detach()[0],
            zero if given.grad is None else given.grad[0],
            out.detach()[0],
            zero if out.grad is None else out.grad[0],
        )
        for name, (given, out) in seen.items()
    }


@pytest.mark.parametrize(("anatomy", "prefix"), [("class token", 1), ("registers", 5), ("mean pooling", 0)])
def test_fullgrad_by_hand(anatomy, prefix, pixels):
    """Every bias times the gradient at its module's output, token by token; position embeddings among them."""
    model: Any = small(anatomy)
    found = Explainer(model).explain(pixels, "fullgrad", 1).relevance
    for image in range(3):
        seen = watched(model, pixels[image].clone(), 1)
        expected = on_patches(per_pixel_by_hand("input_x_gradient", model, pixels[image], 1), "sum").reshape(-1)
        for name, (_, _, out, gradient) in seen.items():
            bias = getattr(model.get_submodule(name), "bias", None)
            if bias is None or name.endswith("attn"):
                continue
            bias = bias.detach()
            if out.ndim == 3:  # the convolution, (D, h, w)
                expected += (bias[:, None, None] * gradient).sum(0).flatten().numpy()
            elif out.ndim == 2 and len(out) == prefix + 15:
                for patch in range(15):
                    expected[patch] += float(bias @ gradient[prefix + patch])
        # What enters the first block is the embedded patches plus positions: one gradient for both.
        position = model.pos_embed.detach()[0]
        entering = token_gradient(model, pixels[image], 1)
        for patch in range(15):
            expected[patch] += float(position[len(position) - 15 + patch] @ entering[prefix + patch])
        np.testing.assert_allclose(found[image].reshape(-1), expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())


def token_gradient(model: Any, image: Tensor, target: int) -> Tensor:
    """∂logit/∂(tokens entering the first block), (N, D)."""
    seen: list[Tensor] = []

    def see(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs[0].retain_grad()
        seen.append(inputs[0])

    hook = model.blocks[0].register_forward_pre_hook(see)
    try:
        model(image[None])[0, target].backward()
    finally:
        hook.remove()
        model.zero_grad()
    assert seen[0].grad is not None
    return seen[0].grad[0]


def test_what_fullgrad_misses_in_a_vit_is_what_its_docs_say(vit, pixels):
    """y = Σ terms + what activations, the division in norms and attention put in (output ⊙ gradient minus input's)."""
    found = Explainer(vit).explain(pixels, "fullgrad", 1)
    missing = []
    for image in range(3):
        missed = 0.0
        for name, (given, before, out, after) in watched(vit, pixels[image].clone(), 1).items():
            part: Any = vit.get_submodule(name)
            if isinstance(part, nn.GELU):
                missed += float((out * after).sum() - (given * before).sum())
            elif isinstance(part, nn.LayerNorm):
                # Its input also goes past it, so its gradient there is not all of the norm's.
                x = given.clone().requires_grad_()
                (own,) = torch.autograd.grad((part(x) * after).sum(), x)
                missed += float(((out - part.bias.detach()) * after).sum() - (given * own).sum())
            elif name.endswith("attn"):
                mixed_in = part.qkv(given[None]).detach().unflatten(2, (3, 3, 8)).permute(2, 0, 3, 1, 4)
                q, k, v = (one.clone().requires_grad_() for one in mixed_in)
                mixed = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1) @ v
                leaving = part.proj(mixed.transpose(1, 2).flatten(2))
                gradients = torch.autograd.grad((leaving * after).sum(), (mixed, q, k, v))
                products = [
                    float((one.detach() * gradient).sum())
                    for one, gradient in zip((mixed, q, k, v), gradients, strict=True)
                ]
                missed += products[0] - sum(products[1:])
        missing.append(missed)
    y = found.logits[:, 1]
    gaps = np.abs(np.array(missing)) / np.abs(y)
    np.testing.assert_allclose(found.facts["completeness_gap"], gaps, rtol=1e-2, atol=1e-3)
    assert gaps.min() > 0.01


def test_rescaled_fullgrad_is_the_papers_saliency(pixels):
    """ψ: absolute value, scaled to [0, 1] over a layer's places and channels, then the sum over channels and layers."""
    model: Any = linear(nn.ReLU, depth=1)
    found = Explainer(model).explain(pixels, "fullgrad", 1, combine="rescaled")
    assert not found.signed  # sums of absolute values
    fine = Explainer(model).explain(pixels, "fullgrad", 1, combine="rescaled", level="pixels")

    def psi(terms: Tensor) -> Tensor:
        size = terms.abs() - terms.abs().min()
        return (size / size.max()).sum(-1) if size.max() > 0 else size.sum(-1)  # the last MLP's patches: nobody reads

    for image in range(3):
        point = pixels[image]
        own = psi((point * gradient_by_hand(model, point, 1)).permute(1, 2, 0)).numpy()
        expected = torch.zeros(15)
        for name, (_, _, out, gradient) in watched(model, point.clone(), 1).items():
            bias = getattr(model.get_submodule(name), "bias", None)
            if bias is not None and out.ndim == 3:
                expected += psi((bias.detach()[:, None, None] * gradient).flatten(1).T)
            elif bias is not None and out.ndim == 2:
                expected += psi(bias.detach() * gradient[1:])
        expected += psi(model.pos_embed.detach()[0, 1:] * token_gradient(model, point, 1)[1:])
        # What stands beside the class token adds nothing to patches: its term there is zero everywhere.
        coarse = expected.numpy().reshape(GRID)
        np.testing.assert_allclose(found.relevance[image], coarse + on_patches(own, "mean"), rtol=1e-3)
        spread = coarse.repeat(PATCH, 0).repeat(PATCH, 1)
        np.testing.assert_allclose(fine.relevance[image], spread + own, rtol=1e-3)


def test_biases_are_seen_however_tokens_are_laid_out():
    """Per head, before flattening, on a finer grid, added apart from the product, and without a place."""
    anatomy = Anatomy(("",), (2, 3), (2, 3), 1, Readout(tokens=(0,)), "")

    def terms(run: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tap = BiasTap(anatomy, "sum", 2)
        x = x.requires_grad_()
        with torch.enable_grad(), tap:
            out = run(x)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        torch.autograd.grad((out * weights).sum(), x)
        return tap.map, tap.total, weights

    bias = nn.Parameter(torch.tensor([1.0, 2, 3, 4]))
    heads, total, weights = terms(lambda x: nn.functional.layer_norm(x, (4,), None, bias), torch.randn(2, 5, 7, 4))
    torch.testing.assert_close(heads.flatten(1), (weights * bias).sum((1, 3))[:, 1:].detach())
    torch.testing.assert_close(total, (weights * bias).flatten(1).sum(1).detach())
    grid, _, weights = terms(lambda x: nn.functional.linear(x, torch.eye(4), bias), torch.randn(2, 2, 3, 4))
    torch.testing.assert_close(grid, (weights * bias).sum(3).detach())
    fine, total, weights = terms(
        lambda x: nn.functional.conv2d(x, torch.ones(4, 3, 1, 1), bias), torch.randn(2, 3, 4, 6)
    )
    expected = (weights * bias[:, None, None]).sum(1).unflatten(2, (3, 2)).unflatten(1, (2, 2)).sum((2, 4))
    torch.testing.assert_close(fine, expected.detach())
    torch.testing.assert_close(total, fine.sum((1, 2)))

    def in_place(x: Tensor) -> Tensor:
        x = x * 2
        x += bias
        return x

    apart, _, weights = terms(in_place, torch.randn(2, 6, 4))
    torch.testing.assert_close(apart.flatten(1), (weights * bias).sum(2).detach())
    pooled, total, weights = terms(lambda x: nn.functional.linear(x.mean(1), torch.eye(4), bias), torch.randn(2, 7, 4))
    assert pooled.ndim == 0
    torch.testing.assert_close(total, (weights * bias).sum(1).detach())
    beside, total, weights = terms(lambda x: torch.cat([bias.expand(2, 1, 4) * 1.0, x], 1), torch.randn(2, 6, 4))
    assert (beside == 0).all()
    torch.testing.assert_close(total, (weights[:, 0] * bias).sum(1).detach())
    attention = nn.MultiheadAttention(4, 2, batch_first=True)  # its biases in front are zero at first
    nn.init.normal_(attention.out_proj.bias)
    inside, total, weights = terms(lambda x: attention(x, x, x)[0], torch.randn(2, 7, 4))
    torch.testing.assert_close(inside.flatten(1), (weights * attention.out_proj.bias).sum(2)[:, 1:].detach())
    torch.testing.assert_close(total, (weights * attention.out_proj.bias).flatten(1).sum(1).detach())


# All of them --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_levels_agree(name, vit, pixels):
    fine = Explainer(vit).explain(pixels, name, 1, level="pixels", **FEW.get(name, {}))
    coarse = Explainer(vit).explain(pixels, name, 1, **FEW.get(name, {}))
    for image in range(3):
        expected = on_patches(fine.relevance[image].astype(float), "sum" if name in SUMMED else "mean")
        np.testing.assert_allclose(coarse.relevance[image], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", METHODS)
def test_pixels_that_patches_do_not_cover_get_nothing(name):
    model = lively(VisionTransformer(**{**SMALL, "img_size": (37, 26)}))
    image = torch.randn(2, 3, 37, 26, generator=torch.Generator().manual_seed(6))
    fine = Explainer(model).explain(image, name, 0, level="pixels", **FEW.get(name, {})).relevance
    coarse = Explainer(model).explain(image, name, 0, **FEW.get(name, {})).relevance
    assert fine.shape == (2, 37, 26) and coarse.shape == (2, 4, 3)
    assert (fine[:, 32:] == 0).all() and (fine[:, :, 24:] == 0).all()
    inner = fine[:, :32, :24].reshape(2, 4, 8, 3, 8)
    expected = inner.sum((2, 4)) if name in SUMMED else inner.mean((2, 4))
    np.testing.assert_allclose(coarse, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", METHODS)
def test_swapping_two_classes_swaps_their_maps(name, vit, pixels):
    before = [Explainer(vit).explain(pixels, name, target, **FEW.get(name, {})).relevance for target in (0, 1)]
    order = torch.tensor([1, 0, *range(2, CLASSES)])
    with torch.no_grad():
        vit.head.weight.copy_(vit.head.weight[order])
        vit.head.bias.copy_(vit.head.bias[order])
    after = [Explainer(vit).explain(pixels, name, target, **FEW.get(name, {})).relevance for target in (1, 0)]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())
    assert np.abs(before[0] - before[1]).max() > 1e-3 * np.abs(before[0]).max()


@pytest.mark.parametrize("name", ["smoothgrad", "vargrad", "expected_gradients"])
def test_draws_depend_on_the_seed_alone(name, vit, pixels):
    explainer = Explainer(vit)

    def found(seed: int, images: Tensor) -> Array:
        return explainer.explain(images, name, 1, samples=3, seed=seed).relevance

    state = torch.random.get_rng_state()
    first = found(1, pixels)
    assert (torch.random.get_rng_state() == state).all()
    torch.rand(7)
    assert (found(1, pixels) == first).all()
    assert np.abs(found(2, pixels) - first).max() > 1e-3 * np.abs(first).max()
    # The same draws for every image, wherever it is in the batch.
    again = found(1, pixels[[2, 2, 0]])
    np.testing.assert_allclose(again, first[[2, 2, 0]], rtol=1e-3, atol=1e-5 * np.abs(first).max())


@pytest.mark.parametrize(
    ("name", "forwards"),
    [("smoothgrad", 5), ("vargrad", 5), ("integrated_gradients", 7), ("expected_gradients", 10)],
)
def test_progress_is_told(name, forwards, vit, pixels):
    told: list[tuple[int, int]] = []
    Explainer(vit).explain(pixels, name, 1, progress=lambda *step: told.append(step), **FEW[name])
    assert [total for _, total in told] == [forwards] * len(told)
    assert [done for done, _ in told] == sorted({done for done, _ in told}) and told[-1][0] == forwards


def test_smoothgrad_without_noise_is_saliency(vit, pixels):
    plain = Explainer(vit).explain(pixels, "saliency", 1).relevance
    still = Explainer(vit).explain(pixels, "smoothgrad", 1, noise=0.0, samples=3).relevance
    np.testing.assert_allclose(still, plain, rtol=1e-4)
    varied = Explainer(vit).explain(pixels, "vargrad", 1, noise=0.0, samples=3).relevance
    assert varied.max() < 1e-6 * plain.max() ** 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("saliency", {"level": "tokens"}),
        ("smoothgrad", {"noise": -0.1}),
        ("smoothgrad", {"samples": 0}),
        ("vargrad", {"samples": 1}),
        ("integrated_gradients", {"baseline": "black"}),
        ("integrated_gradients", {"steps": 0}),
        ("integrated_gradients", {"steps": 100_000}),
        ("smoothgrad", {"seed": 2**64}),
        ("vargrad", {"seed": 2**64}),
        ("expected_gradients", {"seed": 2**64}),
        ("expected_gradients", {"baseline": "train"}),
        ("fullgrad", {"combine": "max"}),
    ],
)
def test_options_are_checked(vit, pixels, name, options):
    with pytest.raises(OptionError, match=f"{name}: {next(iter(options))} must be"):
        Explainer(vit).explain(pixels, name, 0, **options)


def test_half_precision_is_explained_in_single(pixels):
    model = small("class token").bfloat16()
    for name in METHODS:
        found = Explainer(model).explain(pixels.bfloat16(), name, 1, **FEW.get(name, {}))
        assert found.relevance.dtype == np.float32 and np.isfinite(found.relevance).all()
        assert found.relevance.std() > 0
