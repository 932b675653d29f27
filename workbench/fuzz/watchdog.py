"""Ends a run that does not end by itself: an endless loop is a violation, too."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

MOST_CPU_S: Final = 3.0  # a run takes milliseconds


class HangError(AssertionError):
    """A run took longer than any run should."""


@contextmanager
def watchdog(cpu_s: float = MOST_CPU_S) -> Iterator[None]:
    """Raise in the block after so much processor time.

    Does nothing outside the main thread, and where the system has no such timers.

    Raises:
        HangError: it took longer.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return

    def bark(_number: int, _frame: FrameType | None) -> NoReturn:
        raise HangError("a run has no end")

    before = signal.signal(signal.SIGVTALRM, bark)
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)
