"""Columns that grow at the end, and can lose rows at the front: what every log of the store is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
_FIRST_CAPACITY = 1024


class GrowingTable:
    """Equally long columns with amortised O(1) append per row.

    A row keeps its number for life: rows are numbered from 0 in the order in which they came, also
    after the oldest have been dropped.

    Args:
        schema: column -> dtype name.

    Attributes:
        first: number of the oldest row that is still held.
    """

    def __init__(self, schema: Mapping[str, str]) -> None:
        self.first = 0
        self._start = 0  # of the held rows in the buffers
        self._length = 0
        self._capacity = _FIRST_CAPACITY
        self._buffers: dict[str, NDArray[Any]] = {
            name: np.empty(_FIRST_CAPACITY, dtype) for name, dtype in schema.items()
        }

    def __len__(self) -> int:
        """Rows held."""
        return self._length

    @property
    def end(self) -> int:
        """Number that the next row will get."""
        return self.first + self._length

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The held rows of a column, oldest first: a view that the next append may outdate."""
        return self._buffers[name][self._start : self._start + self._length]

    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self._buffers)

    def row(self, number: int) -> dict[str, int]:
        """One row by its number, as Python integers.

        Raises:
            IndexError: it was dropped, or never came.
        """
        if not self.first <= number < self.end:
            raise IndexError(f"row {number} is not in [{self.first}, {self.end})")
        at = self._start + number - self.first
        return {name: int(buffer[at]) for name, buffer in self._buffers.items()}

    def append(self, columns: Mapping[str, Array]) -> None:
        """Add rows; `columns` holds one array per column, others are ignored."""
        count = len(columns[next(iter(self._buffers))])
        self._make_room(count)
        at = self._start + self._length
        for name, buffer in self._buffers.items():
            buffer[at : at + count] = columns[name]
        self._length += count

    def drop_before(self, number: int) -> None:
        """Forget all rows below `number`; what does not exist is no error."""
        count = min(max(number - self.first, 0), self._length)
        self.first += count
        self._start += count
        self._length -= count

    def _make_room(self, count: int) -> None:
        needed = self._length + count
        if self._start + needed <= self._capacity:
            return
        if needed > self._capacity * 2 // 3:
            self._capacity = needed * 3 // 2
        for name, buffer in self._buffers.items():
            moved = np.empty(self._capacity, buffer.dtype)
            moved[: self._length] = buffer[self._start : self._start + self._length]
            self._buffers[name] = moved
        self._start = 0
