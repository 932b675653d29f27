"""Carries a step's integers to the device in one asynchronous copy, and its tokens back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.core.config import MAX_PLANS_IN_FLIGHT

_ALIGNMENT = 16  # int32 entries: pieces start at multiples of 64 bytes, for wide loads

Int32 = NDArray[np.int32]


class _Slot:
    """A host buffer, pinned if there is a GPU to read it, and when that has read it last."""

    def __init__(self, capacity: int, *, pinned: bool) -> None:
        self.buffer = torch.empty(max(capacity, 1), dtype=torch.int32, pin_memory=pinned)
        self._read = torch.cuda.Event() if pinned else None

    def wait(self) -> None:
        """Return when nothing is going to read what is in the buffer."""
        if self._read is not None:
            self._read.synchronize()

    def sent(self) -> None:
        """A copy from the buffer has been queued."""
        if self._read is not None:
            self._read.record()


class Upload:
    """Host buffers in a ring, one more than steps can be in flight, so that serving never waits.

    Whoever queues more steps than that waits until the device has read the oldest buffer.

    Args:
        device: where to.
        capacity: most int32 entries of a step, padding of the pieces included; grows if need be.
    """

    def __init__(self, device: torch.device, capacity: int) -> None:
        self._device = device
        self._pinned = device.type == "cuda"
        self._ring = [_Slot(capacity, pinned=self._pinned) for _ in range(MAX_PLANS_IN_FLIGHT + 1)]
        self._turn = 0

    def send(
        self, arrays: Sequence[Int32], into: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Copy arrays to the device.

        Args:
            arrays: of int32.
            into: int32 device buffer to fill; None: a new one.

        Returns:
            One view per array, in order.
        """
        starts, size = pieces([len(array) for array in arrays])
        self._turn = (self._turn + 1) % len(self._ring)
        slot = self._ring[self._turn]
        slot.wait()
        if len(slot.buffer) < size:
            slot = self._ring[self._turn] = _Slot(2 * size, pinned=self._pinned)
        host = slot.buffer.numpy()
        for start, array in zip(starts, arrays, strict=True):
            host[start : start + len(array)] = array
        if into is None:
            into = torch.empty(size, dtype=torch.int32, device=self._device)
        into[:size].copy_(slot.buffer[:size], non_blocking=True)
        slot.sent()
        return tuple(
            into[start : start + len(array)] for start, array in zip(starts, arrays, strict=True)
        )


def pieces(lengths: Sequence[int]) -> tuple[list[int], int]:
    """Where pieces of these lengths start in a buffer, and its size."""
    starts, at = [], 0
    for length in lengths:
        starts.append(at)
        at += -(-length // _ALIGNMENT) * _ALIGNMENT
    return starts, at
