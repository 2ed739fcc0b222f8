"""Rank agreement: whether two maps put the patches in the same order, whatever their scales."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks from 1 of a row of numbers (n,); equal numbers share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def spearman(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """Spearman's rank correlation of every two of M rows (M, n): (M, M) in [-1, 1].

    A row that is the same everywhere ranks nothing: its correlations are NaN, also with itself.
    """
    ranked = np.stack([ranks(row) for row in rows])
    ranked -= (rows.shape[1] + 1) / 2
    lengths = np.sqrt((ranked**2).sum(1))
    with np.errstate(invalid="ignore"):
        unit = ranked / lengths[:, None]
    return np.clip(unit @ unit.T, -1, 1)
