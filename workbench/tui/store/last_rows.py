"""Which row of a log spoke last of each key, at any point of the log: keyframes and deltas.

A key is a KV page or a tree node; a delta says that a row concerns a key. The state of all keys
after any number of rows is the last row of each, so one int32 per key is a whole keyframe, and
going anywhere costs one copy and the deltas since the keyframe before, in one vectorised write.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.tui.store.growing_table import GrowingTable

Int32 = NDArray[np.int32]
NEVER = -1


@dataclass(frozen=True, slots=True)
class _Keyframe:
    """`last[key]` after the first `delta` deltas."""

    delta: int
    last: Int32


class LastRows:
    """The last row of each key, after any row.

    Args:
        num_keys: keys at the start; more keys may come.
        spacing: deltas between keyframes at least; as many as there are keys, if that is more, so
            that all keyframes together take at most four times the bytes of the deltas.
    """

    def __init__(self, num_keys: int, spacing: int = 8192) -> None:
        self._num_keys = num_keys
        self._spacing = spacing
        self._deltas = GrowingTable({"key": "int32", "row": "int32"})
        self._keyframes = [_Keyframe(0, np.full(num_keys, NEVER, np.int32))]
        self._current = self._keyframes[0]  # where the last seek went

    @property
    def num_keys(self) -> int:
        """Keys so far."""
        return self._num_keys

    @property
    def nbytes(self) -> int:
        """Bytes of deltas and keyframes."""
        return self._deltas.nbytes + sum(frame.last.nbytes for frame in self._keyframes)

    def append(self, keys: Int32, rows: Int32) -> None:
        """Add deltas: row `rows[i]` concerns key `keys[i]`. Rows must never decrease."""
        if not len(keys):
            return
        self._num_keys = max(self._num_keys, int(keys.max()) + 1)
        spacing = max(self._spacing, self._num_keys // 2)
        for at in range(0, len(keys), spacing):
            part = slice(at, at + spacing)
            self._deltas.append({"key": keys[part], "row": rows[part]})
            if self._deltas.end - self._keyframes[-1].delta >= spacing:
                frame = self._fold(self._keyframes[-1], self._deltas.end)
                self._keyframes.append(frame)

    def after(self, rows: int) -> Int32:
        """int32[num_keys]: the last row below `rows` of each key; NEVER if there is none.

        The result is shared: do not write to it.
        """
        target = self._target(rows)
        here = self._current.delta
        at = bisect_right(self._keyframes, target, key=lambda frame: frame.delta) - 1
        start = self._keyframes[max(at, 0)]
        if start.delta < here <= target:
            start = self._current
        self._current = self._fold(start, target)
        return self._current.last

    def drop_before(self, rows: int) -> None:
        """Forget how it was before row `rows`, as far as whole keyframes allow."""
        target = self._target(rows)
        at = bisect_right(self._keyframes, target, key=lambda frame: frame.delta) - 1
        if at > 0:
            del self._keyframes[:at]
            self._deltas.drop_before(self._keyframes[0].delta)
            self._current = self._keyframes[0]

    def _target(self, rows: int) -> int:
        """Number of the first delta of row `rows` or a later one."""
        wanted = np.int32(rows)  # of the column's own type, or numpy would convert the column
        return self._deltas.first + int(np.searchsorted(self._deltas["row"], wanted))

    def _fold(self, start: _Keyframe, target: int) -> _Keyframe:
        last = np.empty(self._num_keys, np.int32)
        last[: len(start.last)] = start.last
        last[len(start.last) :] = NEVER
        part = slice(start.delta - self._deltas.first, target - self._deltas.first)
        last[self._deltas["key"][part]] = self._deltas["row"][part]
        return _Keyframe(target, last)
