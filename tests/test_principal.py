"""The first principal component, by eigenvectors and by squaring, as accelerators do it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vit_explain.principal import by_squaring, leading_component


@pytest.mark.parametrize("shape", [(3, 20, 48), (2, 60, 24), (1, 196, 64)])
def test_leading_component(shape):
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * torch.linspace(3, 1, shape[2])
    vectors = vectors - vectors.mean(1, keepdim=True)
    few = vectors @ vectors.mT
    value_squared, direction = by_squaring(few)
    along, value = leading_component(vectors)
    for image in range(len(vectors)):
        u, s, _ = np.linalg.svd(vectors[image].double().numpy(), full_matrices=False)
        gap = 1 - s[1] / s[0]
        assert float(value[image]) == pytest.approx(s[0] ** 2, rel=1e-5)
        assert float(value_squared[image]) == pytest.approx(s[0] ** 2, rel=1e-5)
        assert abs(float(u[:, 0] @ direction[image].double().numpy())) == pytest.approx(1, abs=1e-7 / gap)
        assert abs(float(u[:, 0] @ along[image].double().numpy())) == pytest.approx(s[0], rel=1e-6 / gap)


def test_vectors_that_do_not_differ():
    value, direction = by_squaring(torch.zeros(2, 5, 5))
    assert not value.any() and not direction.any()
