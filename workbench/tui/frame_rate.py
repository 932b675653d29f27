"""How many frames a second the screen and its connection can take."""

from __future__ import annotations

from typing import Final

_DIVISORS: Final = (1, 2, 4, 8)  # of the best rate: 30, 15, 7.5 and 3.75 frames a second
_SMOOTHING: Final = 0.1
_BUSY: Final = 0.75  # share of the time between frames that the interface may use
_CALM: Final = 0.35
_LATE: Final = 1.6  # frames that come so many times later than due: something holds us up
_PATIENCE: Final = 45  # frames of calm before it goes faster again


class FrameRate:
    """Decides which ticks of a clock become frames.

    The time that drawing took says how busy the processor is. A slow connection shows in frames
    that come late, because writing to a full terminal waits.

    Args:
        fps: frames a second at best.
        slow_link: never more than half of that.
    """

    def __init__(self, fps: int, slow_link: bool = False) -> None:
        self._interval_s = 1 / fps
        self._least = 1 if slow_link else 0
        self._level = self._least
        self._ticks = 0
        self._calm = 0
        self._load = 0.0
        self._lateness = 1.0
        self._last_tick_s: float | None = None

    @property
    def fps(self) -> float:
        """Frames a second at present."""
        return 1 / (self._interval_s * _DIVISORS[self._level])

    def due(self, now_s: float, cpu_s: float) -> bool:
        """Whether this tick is to be a frame.

        Args:
            now_s: a clock of the wall.
            cpu_s: processor time that the interface has used since the last tick.
        """
        if self._last_tick_s is not None:
            took_s = max(now_s - self._last_tick_s, 1e-6)
            self._load += _SMOOTHING * (min(cpu_s / self._interval_s, 4.0) - self._load)
            self._lateness += _SMOOTHING * (min(took_s / self._interval_s, 8.0) - self._lateness)
            self._adapt()
        self._last_tick_s = now_s
        self._ticks += 1
        return self._ticks % _DIVISORS[self._level] == 0

    def _adapt(self) -> None:
        if self._load > _BUSY or self._lateness > _LATE:
            self._calm = 0
            if self._level < len(_DIVISORS) - 1:
                self._level += 1
                self._load *= 0.5
                self._lateness = 1.0
        elif self._load < _CALM and self._lateness < 1.2:
            self._calm += 1
            if self._calm >= _PATIENCE and self._level > self._least:
                self._level -= 1
                self._calm = 0
