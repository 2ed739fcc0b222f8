"""The C library's heap, as far as a large look must mind it."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def release_holes() -> None:
    """Give memory that is free inside the heap back to the system, where the C library can (glibc's ``malloc_trim``).

    Between a model's buffers lie holes that no buffer of another size fits; they stay resident until this is called.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # macOS and musl have none; Windows has no handle of everything
        return None
