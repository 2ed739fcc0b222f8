"""Metrics beside Quantus, on the same maps.

Quantus works on maps at the pixels. Its faithfulness correlation and its model randomisation draw their own chance, so
they cannot be held to ours; its infidelity perturbs patches by noise of its own.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from small_models import SIZE, small

from vit_explain import Explainer
from vit_explain import metrics as _registers_them  # noqa: F401
from vit_explain.cases import Case
from vit_explain.judging import Judge
from vit_explain.likeness import structural_similarity
from vit_explain.metric_registry import METRICS, Measured

pytestmark = pytest.mark.peers

IMAGES, STEPS = 3, 12


@pytest.fixture(scope="module")
def quantus() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, about their dependencies
        return pytest.importorskip("quantus")


@pytest.fixture(scope="module")
def model() -> Any:
    return small("class token")


@pytest.fixture(scope="module")
def case(model) -> Case:
    generator = torch.Generator().manual_seed(4)
    judge = Judge(Explainer(model), seed=0)
    pictures = judge.pictures(torch.randn(IMAGES, 3, *SIZE, generator=generator))
    maps = torch.rand(IMAGES, *SIZE, generator=generator)
    truth = torch.zeros(IMAGES, *SIZE, dtype=torch.bool)
    truth[:, 5:19, 8:30] = True
    return Case(maps, torch.tensor([2, 0, 3]), pictures, judge.whole(pictures), truth=truth)


def theirs(metric: Any, model: Any, case: Case, **more: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = metric(
            model=model,
            x_batch=case.pictures.pixels.numpy(),
            y_batch=case.targets.numpy(),
            a_batch=case.maps[:, None].numpy(),
            **more,
        )
    return np.array(found, dtype=float)


def ours(name: str, case: Case, **options: Any) -> np.ndarray:
    found = METRICS[name].run(case, **METRICS[name].settings(options))
    return (found.values if isinstance(found, Measured) else found).numpy()


def quiet(kind: Any, **options: Any) -> Any:
    return kind(disable_warnings=True, display_progressbar=False, **options)


def on_patches(case: Case) -> np.ndarray:
    return case.at("patch").numpy()


def test_gini_and_entropy(quantus, model, case):
    """Ours are of patches, so Quantus gets each patch's mean as a picture of its own."""
    values = on_patches(case)
    for name, kind, scale in (
        ("gini", quantus.Sparseness, 1),
        ("entropy", quantus.Complexity, math.log(values.shape[1])),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = quiet(kind, normalise=False)(
                model=model, x_batch=np.zeros((IMAGES, 1, *case.pictures.anatomy.grid)), y_batch=case.targets.numpy(),
                a_batch=values.reshape(IMAGES, 1, *case.pictures.anatomy.grid),
            )  # fmt: skip
        np.testing.assert_allclose(ours(name, case) * scale, found, rtol=1e-4)


def test_localisation(quantus, model, case):
    masks = case.truth[:, None].numpy()
    found = theirs(quiet(quantus.RelevanceMassAccuracy, normalise=False), model, case, s_batch=masks)
    np.testing.assert_allclose(ours("energy_pointing", case), found, rtol=1e-4)
    found = theirs(quiet(quantus.PointingGame, normalise=False), model, case, s_batch=masks)
    np.testing.assert_array_equal(ours("pointing_game", case), found)


def test_pixel_flipping_is_deletion(quantus, model, case):
    """Most relevant first, zeros put in their place; Quantus leaves the whole picture's answer out of its curve,
    and counts each channel of a pixel as a feature."""
    metric = quiet(
        quantus.PixelFlipping, features_in_step=3 * SIZE[0] * SIZE[1] // STEPS, perturb_baseline=0.0, normalise=False
    )
    curves = theirs(metric, model, case, softmax=True)
    found = METRICS["deletion"].run(
        case, **METRICS["deletion"].settings({"steps": STEPS, "level": "pixel", "fill": "zero"})
    )
    np.testing.assert_allclose(found.curve[:, 1:].numpy(), curves, atol=1e-4)


def test_structural_similarity(quantus):
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 4, 12, 14, generator=generator)
    for maps in (one, other):  # ours brings maps to [0, 1] first
        maps -= maps.amin((1, 2), keepdim=True)
        maps /= maps.amax((1, 2), keepdim=True)
    from skimage.metrics import structural_similarity as skimage_ssim

    expected = [skimage_ssim(a.numpy(), b.numpy(), win_size=7, data_range=1.0) for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(structural_similarity(one, other).numpy(), expected, atol=1e-5)
