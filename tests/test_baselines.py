"""Baselines: what each draws, by hand; that they capture nothing and touch no global state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import GRID, PATCH, SIZE, SMALL, lively, small
from timm.models.vision_transformer import VisionTransformer

from vit_explain import Explainer, list_methods
from vit_explain.errors import OptionError

BASELINES = ("random", "uniform", "centred_gaussian", "edges")


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_need_nothing(name):
    method = next(method for method in list_methods() if method.name == name)
    assert not method.needs and not method.class_specific and method.backwards == 0 and method.forwards == 1


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_do_not_depend_on_the_model(name, pixels):
    maps = [Explainer(small(kind)).explain(pixels, name).relevance for kind in ("class token", "mean pooling")]
    np.testing.assert_array_equal(maps[0], maps[1])


def test_random_depends_on_seed_and_pixels_and_on_nothing_else(vit, pixels):
    explainer = Explainer(vit)
    state = torch.get_rng_state()
    found = explainer.explain(pixels, "random").relevance
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    np.testing.assert_array_equal(explainer.explain(pixels, "random").relevance, found)
    np.testing.assert_array_equal(explainer.explain(pixels.flip(0), "random").relevance, found[::-1])
    assert len({image.tobytes() for image in found}) == 3
    assert (explainer.explain(pixels, "random", seed=1).relevance != found).all()
    touched = pixels.clone()
    touched[0, 0, 0, 0] += 1e-3
    other = explainer.explain(touched, "random").relevance
    assert (other[0] != found[0]).all() and (other[1:] == found[1:]).all()


def test_random_is_uniform(vit):
    many = torch.randn(40, 3, *SIZE, generator=torch.Generator().manual_seed(3))
    values = np.sort(Explainer(vit).explain(many, "random").relevance.ravel())
    assert values.min() >= 0 and values.max() < 1
    # Kolmogorov and Smirnov: 600 draws differ from the diagonal by more than this once in a thousand times.
    assert np.abs(values - (np.arange(600) + 0.5) / 600).max() < 1.95 / np.sqrt(600)


def test_uniform_is_one_everywhere(vit, pixels):
    assert (Explainer(vit).explain(pixels, "uniform").relevance == np.ones((3, *GRID))).all()


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_centred_gaussian_by_hand(vit, pixels, sigma):
    expected = np.zeros(GRID)
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            y, x = (row + 0.5) / GRID[0] * 2 - 1, (column + 0.5) / GRID[1] * 2 - 1
            expected[row, column] = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    for found in Explainer(vit).explain(pixels, "centred_gaussian", sigma=sigma).relevance:
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(OptionError, match="sigma must be"):
        Explainer(vit).explain(pixels, "centred_gaussian", sigma=0.0)


def sobel_by_hand(image: np.ndarray) -> np.ndarray:
    grey = image.astype(np.float64).mean(0)
    height, width = grey.shape
    found = np.zeros_like(grey)
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    for y in range(height):
        for x in range(width):
            across = down = 0.0
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    value = grey[min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
                    across += kernel[dy + 1, dx + 1] * value
                    down += kernel[dx + 1, dy + 1] * value
            found[y, x] = np.hypot(across, down)
    return found


def test_edges_by_hand(vit, pixels):
    explainer = Explainer(vit)
    fine = explainer.explain(pixels, "edges", level="pixels").relevance
    coarse = explainer.explain(pixels, "edges").relevance
    for image in range(3):
        expected = sobel_by_hand(pixels[image].numpy())
        np.testing.assert_allclose(fine[image], expected, rtol=1e-4, atol=1e-5)
        for row in range(GRID[0]):
            for column in range(GRID[1]):
                patch = expected[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
                assert coarse[image, row, column] == pytest.approx(patch.mean(), rel=1e-4)


def test_edges_average_over_what_patches_cover():
    """37 pixels hold four patches of 8; the edge in the five pixels below them is no patch's."""
    model = lively(VisionTransformer(**{**SMALL, "img_size": (37, 24)}))
    pixels = torch.zeros(1, 3, 37, 24)
    pixels[..., 35:, :] = 5.0
    found = Explainer(model).explain(pixels, "edges")
    assert found.relevance.shape == (1, 4, 3) and (found.relevance == 0).all()
    pixels[..., :12] = 1.0
    assert (Explainer(model).explain(pixels, "edges").relevance[0, :, 1] > 0).all()


def test_a_step_is_an_edge_and_a_plane_is_none(vit):
    step = torch.zeros(1, 3, *SIZE)
    step[..., 20:] = 1.0
    found = Explainer(vit).explain(step, "edges", level="pixels").relevance[0]
    assert (found[:, 19:21] == 4).all() and (np.delete(found, [19, 20], 1) == 0).all()
