"""Room for what is kept of a look, apart from the model's own short-lived buffers."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from .heap import release_holes

_SPARE = threading.local()


class Slab:
    """Contiguous copies of tensors, side by side in a few large buffers.

    What is kept through a look would otherwise lie between the model's own short-lived buffers on the heap and keep the
    room between them from being used again (measured at 4,097 tokens: 130 MB on top of 300 MB that are kept). Buffers
    go to the thread's next look, up to ``SPARE`` of them: memory that was never touched costs time when it first is.
    """

    SIZE, SPARE, ALIGNMENT = 2**26, 2, 64  # bytes, buffers, bytes; pages that nothing is written to cost nothing

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._used = 0

    def copy(self, tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.element_size()
        if tensor.device.type != "cpu":
            return tensor.clone(memory_format=torch.contiguous_format)
        if not self._buffers or len(self._buffers[-1]) - self._used < size:
            spare = _spare_buffers()
            fits = spare and len(spare[-1]) >= size
            buffer = spare.pop() if fits else torch.empty(max(self.SIZE, size), dtype=torch.uint8)
            self._buffers.append(buffer)
            self._used = 0
        if len(self._buffers) > self.SPARE:
            release_holes()
        piece = self._buffers[-1][self._used : self._used + size]
        self._used += -(-size // self.ALIGNMENT) * self.ALIGNMENT
        return piece.view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def __del__(self) -> None:
        """Layers hold their slab: when the last of them is gone, nothing reads its buffers any more."""
        spare = _spare_buffers()
        usual = [buffer for buffer in self._buffers if len(buffer) == self.SIZE]
        spare.extend(usual[: self.SPARE - len(spare)])


def _spare_buffers() -> list[Tensor]:
    if not hasattr(_SPARE, "buffers"):
        _SPARE.buffers = []
    return _SPARE.buffers
