"""Discarding the lowest entries of large matrices: finding where to cut without sorting or copying them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A selection copies what it selects from. Beyond this many entries it is first narrowed down with a sample.
WHOLE = 2**20
SAMPLE = 2**16
PIECE = 2**18  # entries that are compared at a time, which stay in the processor's cache


def zero_lowest(flat: Tensor, count: int) -> None:
    """Zero, in place, negatives and all below the (count + 1)-th smallest entry, of each row of (b, n)."""
    if flat.device.type != "cpu":
        smallest_kept = flat.kthvalue(count + 1, dim=1, keepdim=True).values
        flat.mul_(flat >= smallest_kept).clamp_(min=0)
        return
    for entries in flat:
        # threshold_ keeps what is greater than its argument.
        torch.threshold_(entries, _cut(entries.numpy(), count), 0.0)


def _cut(entries: NDArray[np.float32], count: int) -> float:
    """The largest number below the (count + 1)-th smallest entry; zero where that entry is not positive.

    ``torch.kthvalue`` carries indices along and takes several times as long as numpy's vectorised selection.
    """
    # Attention times its gradient is zero where no gradient arrives, and selecting among equal entries is slow.
    if sum(np.count_nonzero(piece > 0) for piece in pieces(entries)) < len(entries) - count:
        return 0.0
    # The bits of positive floats order them as integers do, which are compared faster; negatives stay below.
    smallest_kept = smallest(entries.view(np.int32), count).view(np.float32)
    return float(np.nextafter(smallest_kept, np.float32(-np.inf)))


def pieces(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The values, ``PIECE`` at a time."""
    return (values[first : first + PIECE] for first in range(0, len(values), PIECE))


def smallest(values: NDArray[np.int32], k: int) -> np.int32:
    """The k-th smallest of the values, from 0, exactly."""
    if len(values) <= WHOLE:
        return np.partition(values, k)[k]
    sample = np.sort(values[np.random.default_rng(0).integers(len(values), size=SAMPLE)])
    # Five standard deviations of a sample's quantile; if chance will have it otherwise, the counts below tell.
    share = k / len(values)
    place, reach = share * SAMPLE, 5 * (share * (1 - share) * SAMPLE) ** 0.5 + 1
    low, high = sample[max(0, int(place - reach))], sample[min(SAMPLE - 1, int(place + reach) + 1)]
    below, between = 0, []
    for piece in pieces(values):
        below += np.count_nonzero(piece < low)
        between.append(piece[(piece >= low) & (piece <= high)])
    candidates = np.concatenate(between)
    if below <= k < below + len(candidates):
        return np.partition(candidates, k - below)[k - below]
    return np.partition(values, k)[k]
