"""Ctrl-C between the steps of an engine, not in the middle of one.

Python raises `KeyboardInterrupt` wherever it happens to be: if that is while a step is planned or
launched, the scheduler waits for a step that nobody has started, and the engine is lost.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_interrupt() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back while the block runs; call what it yields where it may be raised.

    At the end of the block it is raised if it has not been. A second Ctrl-C does not wait. Only
    Python's own handling is held back, and that only in the main thread; other threads and programs
    that handle the signal themselves are left alone.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: None
        return
    pending = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal pending
        pending = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def let_through() -> None:
        nonlocal pending
        if pending:
            pending = False
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield let_through
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    let_through()
