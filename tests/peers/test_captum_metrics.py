"""Infidelity and max-sensitivity beside captum, on the same maps, sets of patches and noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from alike import bundled, photo
from torch import Tensor

from vit_explain import Explainer
from vit_explain import metrics as _registers_them  # noqa: F401
from vit_explain.judging import Judge
from vit_explain.metric_registry import METRICS
from vit_explain.registry import find
from vit_explain.seeds import own_generator

pytestmark = pytest.mark.peers

SAMPLES, CLASS = 12, 3


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(Explainer(bundled()), seed=0)


def case_of(judge: Judge, method: str) -> Any:
    pictures = judge.pictures(photo()[:1])
    settings = find(method).settings({})
    return judge.case(find(method), settings, pictures, judge.whole(pictures), torch.tensor([CLASS]))


@pytest.mark.parametrize("method", ("gae", "input_x_gradient"))
def test_infidelity(judge, method):
    from captum.metrics import infidelity

    case = case_of(judge, method)
    removed, _ = case.pictures.at_random(0.2, SAMPLES, "mean")

    def score(kept: Tensor) -> Tensor:
        return case.pictures.ask(kept > 0.5, torch.zeros(len(kept), dtype=torch.long), "mean")[:, CLASS]

    def without(patches: Tensor) -> tuple[Tensor, Tensor]:
        return removed[0].float(), patches - removed[0].float()

    everything = torch.ones(1, removed.shape[-1])
    theirs = infidelity(
        score, without, everything, case.at("patch"), n_perturb_samples=SAMPLES,
        max_examples_per_batch=SAMPLES, normalize=True,
    )  # fmt: skip
    ours = METRICS["infidelity"].run(case, samples=SAMPLES, share=0.2, fill="mean", score="logit")
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-3, atol=1e-6)


def test_max_sensitivity(judge):
    from captum.metrics import sensitivity_max

    case, radius = case_of(judge, "gae"), 0.05
    pixels = case.pictures.pixels
    generator = own_generator(pixels[0], judge.seed)
    noises = [radius * (2 * torch.rand(pixels.shape[1:], generator=generator) - 1) for _ in range(3)]

    def noisy(inputs: Tensor) -> Tensor:
        return inputs + torch.stack(noises)

    def explained(inputs: Any) -> tuple[Tensor]:
        inputs = inputs[0] if isinstance(inputs, tuple) else inputs
        return (torch.cat([case.explain(one[None], case.targets) for one in inputs]).flatten(1),)

    theirs = sensitivity_max(
        explained, pixels, lambda given: noisy(given[0] if isinstance(given, tuple) else given),
        n_perturb_samples=3, max_examples_per_batch=3,
    )  # fmt: skip
    ours = METRICS["max_sensitivity"].run(case, samples=3, radius=radius)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
