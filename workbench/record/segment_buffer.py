"""Joins small segments of events into larger ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from engine.core.events import TABLES, Segment, concatenate
from workbench.record.columns import rows


class SegmentBuffer:
    """A sink that hands segments on once a table has `segment_rows` rows; `flush` does so at once.

    With `seconds` a segment that comes so long after the last handing on takes along what waits.

    A stream wants rows soon and a record wants few files; with one of these before it the record
    takes the segments of the stream.
    """

    def __init__(
        self,
        sink: Callable[[Segment], None],
        segment_rows: int = 1 << 17,
        seconds: float = math.inf,
    ) -> None:
        self._sink, self._seconds = sink, seconds
        self._flushed_s = time.monotonic()
        self._segment_rows = segment_rows
        self._waiting: list[Segment] = []
        self._rows = dict.fromkeys(TABLES, 0)

    def add(self, segment: Segment) -> None:
        """Take a segment."""
        self._waiting.append(segment)
        for name, columns in segment.items():
            self._rows[name] += rows(columns)
        late = time.monotonic() >= self._flushed_s + self._seconds
        if late or max(self._rows.values()) >= self._segment_rows:
            self.flush()

    def flush(self) -> None:
        """Hand on what waits, if anything does."""
        self._flushed_s = time.monotonic()
        if not self._waiting:
            return
        names = {name for segment in self._waiting for name in segment}
        joined = concatenate(self._waiting, tuple(name for name in TABLES if name in names))
        self._waiting.clear()
        self._rows = dict.fromkeys(TABLES, 0)
        self._sink(joined)
