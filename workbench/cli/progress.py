"""One line on stderr that says how far a run is."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from simulator.world import Progress

_NS_PER_S = 1e9
_REFRESH_S = 0.1
_CLEAR_LINE = "\r\x1b[K"


class ProgressLine:
    """Rewrites one line of a terminal; says nothing when the stream is not one.

    A context manager: the line is gone when it ends, so that the result stands alone.

    Args:
        stream: stderr by default.
        enabled: False says nothing in any case.
        real_time: the run's seconds are those of the clock on the wall.
    """

    def __init__(
        self, stream: TextIO | None = None, enabled: bool = True, real_time: bool = False
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled and self._stream.isatty()
        self._real_time = real_time
        self._next_s = 0.0
        self._started_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._enabled:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()

    def say(self, text: str) -> None:
        """Show what is going on before there are any requests."""
        if self._enabled:
            self._stream.write(_CLEAR_LINE + self._fitted(text))
            self._stream.flush()

    def _fitted(self, text: str) -> str:
        """As much as fits: of a line that wraps only the last row could be cleared."""
        columns = 0
        with suppress(OSError, ValueError):
            columns = os.get_terminal_size(self._stream.fileno()).columns
        return text if len(text) < columns or columns < 1 else text[: columns - 2] + "…"

    def update(self, progress: Progress) -> None:
        """Show how many requests have ended, and where the run's clock is."""
        now_s = time.monotonic()
        if not self._enabled or now_s < self._next_s:
            return
        self._next_s = now_s + _REFRESH_S
        share = progress.ended / progress.total if progress.total else 1.0
        self.say(
            f"{progress.ended:,} of {progress.total:,} requests ({share:.0%}), "
            f"{self._times(progress, now_s)}"
        )

    def _times(self, progress: Progress, now_s: float) -> str:
        run_s = progress.now_ns / _NS_PER_S
        if self._real_time:
            present = progress.sent - progress.ended
            return f"{present:,} in the engine, {progress.steps:,} steps, {run_s:,.1f} s"
        return f"{run_s:,.1f} s simulated in {now_s - self._started_s:.1f} s"
