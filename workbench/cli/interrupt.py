"""Ctrl-C or SIGTERM as a wish to stop soon, so that what has been simulated is kept."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import typer

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class StopWish:
    """Says, when called, whether somebody wants the run to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What shells expect of a program that a signal stopped: 130 or 143; 0 without one."""
        return 0 if self.signal is None else 128 + self.signal


@contextmanager
def stop_on_interrupt() -> Iterator[StopWish]:
    """Note Ctrl-C and SIGTERM while the block runs; a second of either ends it at once."""
    wish = StopWish()
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: FrameType | None) -> None:
        wish.signal = number
        restore()

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield wish
    except KeyboardInterrupt:
        if wish.signal == signal.SIGTERM:
            raise SystemExit(wish.exit_code) from None
        raise
    finally:
        restore()


@contextmanager
def kept_on_interrupt() -> Iterator[None]:
    """Say of what is kept piece by piece that an interruption has not lost it."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(
            "interrupted: what was measured is kept, and the same command goes on after it",
            err=True,
        )
        raise
