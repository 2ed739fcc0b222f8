"""Discarding against sorting: small and large rows, ties, negatives, rows that are zero almost everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vit_explain import selection
from vit_explain.selection import smallest, zero_lowest


def rows(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(3, 1001, generator=generator)
    return {
        "distinct": values,
        "ties": values.round(decimals=1),
        "signed": values - 0.5,
        "mostly negative": values - 0.95,
        "mostly zero": values * (values > 0.97),
        "negative zeros": -values.round() * (values > 2),
        "tiny": values * 1e-44,
    }[kind]


KINDS = ("distinct", "ties", "signed", "mostly negative", "mostly zero", "negative zeros", "tiny")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", (0, 1, 500, 900, 1000))
def test_what_is_below_the_smallest_kept_is_zeroed(kind, count):
    values = rows(kind)
    smallest_kept = values.sort(1).values[:, count : count + 1]
    expected = torch.where(values >= smallest_kept, values, 0.0).clamp(min=0)
    found = values.clone()
    zero_lowest(found, count)
    assert found.equal(expected)


@pytest.mark.parametrize("kind", ["normal", "ties", "ascending", "alternating", "one value"])
@pytest.mark.parametrize("share", (0.0, 0.1, 0.5, 0.9, 1.0))
def test_narrowed_selection_is_exact(monkeypatch, kind, share):
    monkeypatch.setattr(selection, "WHOLE", 1000)
    monkeypatch.setattr(selection, "SAMPLE", 256)
    monkeypatch.setattr(selection, "PIECE", 999)
    generator = np.random.default_rng(1)
    values = {
        "normal": generator.normal(size=20_011) * 1e6,
        "ties": generator.integers(0, 4, 20_011),
        "ascending": np.arange(20_011),
        "alternating": np.arange(20_011) % 2,
        "one value": np.full(20_011, 7),
    }[kind].astype(np.int32)
    k = min(int(share * len(values)), len(values) - 1)
    assert smallest(values, k) == np.sort(values)[k]


def test_a_sample_that_misleads_changes_nothing(monkeypatch):
    """Where the sampled bounds do not hold the wanted entry, all entries are selected from."""

    class Misled:
        def integers(self, _: int, size: int) -> np.ndarray:
            return np.zeros(size, dtype=int)

    monkeypatch.setattr(selection, "WHOLE", 10)
    monkeypatch.setattr(selection.np.random, "default_rng", lambda _: Misled())
    assert smallest(np.arange(100, dtype=np.int32)[::-1].copy(), 40) == 40
