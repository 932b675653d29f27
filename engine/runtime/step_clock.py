"""When steps ran on the device, told on the host's clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class StepEvents(NamedTuple):
    """CUDA events around the work of a step, and one behind the copy of its results."""

    begin: torch.cuda.Event
    end: torch.cuda.Event
    copied: torch.cuda.Event


class StepClock:
    """Places steps on the host's clock.

    CUDA events measure distances only. A step that was launched while the device was idle begins
    when it is launched; a later one begins so long after the end of the one before.

    Args:
        clock: the host's, in ns.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._last: tuple[torch.cuda.Event, int] | None = None  # end of a step, and when that was

    def place(self, events: StepEvents, launched_ns: int) -> tuple[int, int]:
        """(start_ns, gpu_ns) of a step that is done; call it for every step, in order."""
        gpu_ns = round(events.begin.elapsed_time(events.end) * 1e6)
        start_ns = launched_ns
        if self._last is not None:
            event, ended_ns = self._last
            gap_ns = round(event.elapsed_time(events.begin) * 1e6)
            # After an idle time the launch is the better anchor: errors of sums stay small.
            if gap_ns < 1_000_000:
                start_ns = max(launched_ns, ended_ns + gap_ns)
        start_ns = min(start_ns, self._clock() - gpu_ns)
        self._last = (events.end, start_ns + gpu_ns)
        return start_ns, gpu_ns
