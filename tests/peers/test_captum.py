"""Gradients and perturbation beside captum, on the same model, pixels and class."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from alike import assert_same_map, bundled, photo
from small_models import GRID, PATCH, SIZE

from vit_explain import Explainer
from vit_explain.players import rectangles

pytestmark = pytest.mark.peers

CLASSES = [1, 3]
SAMPLES = 6
PLAYERS = 2  # a side


@pytest.fixture(scope="module")
def trained() -> Any:
    return bundled()


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return photo()


def test_saliency(trained, pictures):
    from captum.attr import Saliency

    ours = Explainer(trained).attribute(pictures, CLASSES, "saliency", level="pixels")
    assert_same_map(ours, Saliency(trained).attribute(pictures.clone().requires_grad_(), CLASSES).amax(1))


def test_input_x_gradient(trained, pictures):
    from captum.attr import InputXGradient

    ours = Explainer(trained).attribute(pictures, CLASSES, "input_x_gradient", level="pixels")
    assert_same_map(ours, InputXGradient(trained).attribute(pictures.clone().requires_grad_(), CLASSES).sum(1))


@pytest.mark.parametrize("steps", [8, 50])
def test_integrated_gradients(trained, pictures, steps):
    """captum's own rule is Gauss-Legendre too."""
    from captum.attr import IntegratedGradients

    images = pictures[:1]
    ours = Explainer(trained).attribute(images, 1, "integrated_gradients", level="pixels", steps=steps)
    theirs = IntegratedGradients(trained).attribute(images, 0.0, 1, n_steps=steps, internal_batch_size=8)
    assert_same_map(ours, theirs.sum(1))


@pytest.mark.parametrize(
    ("ours", "theirs", "channels"),
    [
        ("smoothgrad", "smoothgrad", lambda found: found.abs().amax(1)),
        ("vargrad", "vargrad", lambda found: found.sum(1)),
    ],
)
def test_noise_tunnel(trained, pictures, monkeypatch, ours, theirs, channels):
    from captum.attr import NoiseTunnel, Saliency

    image = pictures[:1]
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([torch.randn(image.shape[1:], generator=generator) for _ in range(SAMPLES)])
    monkeypatch.setattr(torch, "normal", lambda mean, deviation: mean + deviation * draws)
    tunnel = NoiseTunnel(Saliency(trained))
    spread = 0.15 * float(image.max() - image.min())
    found = tunnel.attribute(image, theirs, SAMPLES, stdevs=spread, target=1, abs=False)
    mine = Explainer(trained).attribute(image, 1, ours, level="pixels", samples=SAMPLES, noise=0.15, seed=0)
    assert_same_map(mine, channels(found))


# What is left out is painted over, since captum knows of pixels only; y is the logit, since it explains outputs.
FILLS = {
    "zero": lambda pixels: torch.zeros_like(pixels),
    "mean": lambda pixels: pixels.mean((2, 3), keepdim=True).expand_as(pixels),
}


def of_patches(per_pixel: torch.Tensor) -> torch.Tensor:
    """The value of any of a patch's pixels and colours, which all have the same."""
    return per_pixel[:, 0, ::PATCH, ::PATCH]


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("window", [1, 2])
def test_occlusion(vit, pixels, fill, window):
    from captum.attr import Occlusion

    side = window * PATCH
    with torch.no_grad():
        found = Occlusion(vit).attribute(pixels, (3, side, side), PATCH, FILLS[fill](pixels), [1, 3, 0])
    ours = Explainer(vit).attribute(pixels, [1, 3, 0], "occlusion", fill=fill, score="logit", window=window)
    assert_same_map(ours, of_patches(found))


@pytest.mark.parametrize("fill", FILLS)
def test_feature_ablation(vit, pixels, fill):
    from captum.attr import FeatureAblation

    with torch.no_grad():
        found = FeatureAblation(vit).attribute(pixels, FILLS[fill](pixels), [1, 3, 0], feature_mask=mask("patches"))
    ours = Explainer(vit).attribute(pixels, [1, 3, 0], "occlusion", fill=fill, score="logit")
    assert_same_map(ours, of_patches(found))


def mask(players: int | str) -> torch.Tensor:
    """captum's numbers of the players, on pixels."""
    numbers = rectangles(GRID, players)
    return numbers.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1).view(1, 1, *SIZE)


def shares(per_pixel: torch.Tensor) -> torch.Tensor:
    """captum gives each of a player's pixels its whole value; here its patches share it."""
    numbers = rectangles(GRID, PLAYERS)
    return of_patches(per_pixel) / numbers.flatten().bincount()[numbers]


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("method", ["kernel_shap", "shapley_sampling"])
def test_exact_shapley_values(vit, pixels, fill, method):
    """Of four players: all their orders in captum, all their subsets or many orders here."""
    from captum.attr import ShapleyValues

    with torch.no_grad():
        found = ShapleyValues(vit).attribute(pixels, FILLS[fill](pixels), [1, 3, 0], feature_mask=mask(PLAYERS))
    exact = method == "kernel_shap"
    ours = Explainer(vit).attribute(pixels, [1, 3, 0], method, fill=fill, score="logit", players=PLAYERS, samples=2**10)
    assert_same_map(ours, shares(found), tolerance=1e-4 if exact else 0.03)


def test_shapley_sampling_with_the_same_orders(vit, pixels):
    from captum.attr import ShapleyValueSampling

    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(GRID[0] * GRID[1], generator=generator).argsort() for _ in range(3)]
    orders = [order for one in orders for order in (one, one.flip(0))]
    peer = ShapleyValueSampling(vit)
    peer.permutation_generator = lambda *_: [order.tolist() for order in orders]
    with torch.no_grad():
        found = peer.attribute(pixels, 0, [1, 3, 0], feature_mask=mask("patches"), n_samples=len(orders))
    ours = Explainer(vit).attribute(
        pixels, [1, 3, 0], "shapley_sampling", players="patches", samples=6, fill="zero", score="logit", seed=5
    )
    assert_same_map(ours, of_patches(found))


def test_kernel_shap_with_the_same_subsets(vit, pixels):
    """Of four players, subsets of one or three weigh twice as much as those of two; captum draws them in proportion."""
    from captum.attr import KernelShap

    peer = KernelShap(vit)

    def subsets(_original: torch.Tensor, **_: Any) -> Iterator[torch.Tensor]:
        every = [torch.tensor([one]) for one in itertools.product((0, 1), repeat=PLAYERS**2)]
        middle = [one for one in every if 0 < int(one.sum()) < len(one[0])]
        yield from (every[-1], every[0], *middle)
        yield from (one for one in middle if int(one.sum()) != 2)

    peer.perturb_func = subsets
    ours = Explainer(vit).attribute(
        pixels[:1], 1, "kernel_shap", players=PLAYERS, samples=2**10, fill="zero", score="logit"
    )
    with torch.no_grad():
        found = peer.attribute(pixels[:1], 0, 1, feature_mask=mask(PLAYERS), n_samples=2 + 14 + 8)
    assert_same_map(ours, shares(found), tolerance=1e-3)
