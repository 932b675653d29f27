"""Aggregates of a series over blocks of 1, 2, 4, ... steps, so that any zoom costs the same.

Level k holds, for each aligned block of 2^k steps, the sum, the maximum and the step that has it.
Sums make means, which are drawn as bars; the maximum is a tick above; the step of the heaviest
batch is where a click leads. Neither the highest of each part nor the heaviest step alone would
show what the steps of a column were like.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.tui.store.growing_table import GrowingTable

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

_SCHEMA = {"sum": "int64", "max": "int64", "argmax": "int64"}


@dataclass(frozen=True, slots=True)
class Blocks:
    """A stretch of blocks of `2**level` steps; int64[n] each.

    Attributes:
        level: see above.
        first: number of the first block: it begins with step `first * 2**level`.
        sum, max: of the series over each block.
        argmax: number of the first step in the block that has the maximum.
        count: steps in each block; fewer than `2**level` at the ends of what is held.
    """

    level: int
    first: int
    sum: Int64
    max: Int64
    argmax: Int64
    count: Int64

    def __len__(self) -> int:
        return len(self.sum)

    @property
    def mean(self) -> Float64:
        """float64[n], the series per step."""
        return self.sum / np.maximum(self.count, 1)


class MipSeries:
    """All levels of one integer series; blocks of a level stay right when steps are added."""

    def __init__(self) -> None:
        self._values = GrowingTable({"value": "int64"})
        self._levels: list[GrowingTable] = []  # levels 1, 2, ...: whole blocks only

    @property
    def end(self) -> int:
        """Number that the next step will get."""
        return self._values.end

    def append(self, values: NDArray[np.signedinteger]) -> None:
        """Add the values of further steps."""
        self._values.append({"value": values})
        level = 1
        while self._grow(level):
            level += 1

    def drop_before(self, step: int) -> None:
        """Forget steps below `step`, rounded down to a whole block of the coarsest level kept."""
        self._values.drop_before(step)
        for k, table in enumerate(self._levels, 1):
            table.drop_before(-(-step >> k) if step >= 0 else 0)

    def blocks(self, level: int, first: int, last: int) -> Blocks:
        """Blocks `first` to `last - 1` of a level, as far as steps are held."""
        size = 1 << level
        first = max(first, self._values.first >> level)
        last = max(min(last, -(-self.end // size)), first)
        whole = self._whole(level, first, last)
        if whole is not None:
            return whole
        return self._ragged(level, first, last)

    def _whole(self, level: int, first: int, last: int) -> Blocks | None:
        """The blocks if all of them are stored whole."""
        size = 1 << level
        if level == 0:
            at = first - self._values.first
            values = self._values["value"][at : at + last - first]
            numbers = np.arange(first, last)
            return Blocks(0, first, values, values, numbers, np.ones(len(values), np.int64))
        if level > len(self._levels):
            return None
        table = self._levels[level - 1]
        if first < table.first or last > table.end:
            return None
        part = slice(first - table.first, last - table.first)
        count = np.full(last - first, size)
        return Blocks(
            level, first, table["sum"][part], table["max"][part], table["argmax"][part], count
        )

    def _ragged(self, level: int, first: int, last: int) -> Blocks:
        """Blocks of which the outer ones are not whole: those are reduced from the level below."""
        lower = self.blocks(level - 1, 2 * first, 2 * last)
        if not len(lower):
            none = np.empty(0, np.int64)
            return Blocks(level, first, none, none, none, none)
        parents = np.arange(lower.first, lower.first + len(lower)) >> 1
        starts = np.flatnonzero(np.diff(parents, prepend=-1))
        best = np.maximum.reduceat(lower.max, starts)
        pick = starts + (lower.max[starts] < best)  # the later half, if only that has it
        return Blocks(
            level=level,
            first=int(parents[0]),
            sum=np.add.reduceat(lower.sum, starts),
            max=best,
            argmax=lower.argmax[pick],
            count=np.add.reduceat(lower.count, starts),
        )

    def _grow(self, level: int) -> bool:
        """Add the blocks of a level that have become whole; False if there are none at all."""
        lower = self._values if level == 1 else self._levels[level - 2]
        if lower.end < 2:
            return False
        if level > len(self._levels):
            table = GrowingTable(_SCHEMA)
            table.first = -(-lower.first // 2)
            self._levels.append(table)
        table = self._levels[level - 1]
        ready = lower.end // 2
        if ready <= table.end:
            return bool(len(table))
        part = slice(2 * table.end - lower.first, 2 * ready - lower.first)
        low = self._pairs(level, part, 2 * table.end)
        later = low.max[1::2] > low.max[0::2]
        table.append(
            {
                "sum": low.sum[0::2] + low.sum[1::2],
                "max": np.where(later, low.max[1::2], low.max[0::2]),
                "argmax": np.where(later, low.argmax[1::2], low.argmax[0::2]),
            }
        )
        return True

    def _pairs(self, level: int, part: slice, first: int) -> Blocks:
        if level == 1:
            values = self._values["value"][part]
            numbers = np.arange(first, first + len(values))
            return Blocks(0, first, values, values, numbers, np.ones(len(values), np.int64))
        table = self._levels[level - 2]
        return Blocks(
            level=level - 1,
            first=first,
            sum=table["sum"][part],
            max=table["max"][part],
            argmax=table["argmax"][part],
            count=np.empty(0, np.int64),
        )
