"""Virtual time on SimPy, with a fixed order for what happens at the same instant.

Whoever acts at the same time acts in order of rank, whatever was scheduled first. So a simulation
that skips ahead and one that goes step by step see the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import simpy
from simpy.events import Event, EventPriority

FOREVER = 1 << 62  # later than any event, in ns: 146 years
_NO_EVENT = float("inf")  # SimPy's word for it
CLIENT_RANK = 0  # requests arrive before replicas act; replica i has rank 1 + i


class Clock:
    """Integer ns on a `simpy.Environment`."""

    def __init__(self) -> None:
        self._env = simpy.Environment(initial_time=0)
        self._now_ns = 0

    @property
    def now(self) -> int:
        """The present virtual time in ns."""
        return self._now_ns

    def at(self, time_ns: int, rank: int, callback: Callable[[Event], None]) -> None:
        """Call back at `time_ns`; among equal times, lower ranks first.

        Raises:
            ValueError: the time has passed.
        """
        delay = time_ns - self._now_ns
        if delay < 0:
            raise ValueError(f"{time_ns} ns lies before the present, {self._now_ns} ns")
        event = Event(self._env)
        event._ok, event._value = True, None  # triggered now, processed at `time_ns`
        event.callbacks.append(callback)
        # SimPy compares priorities as integers; its type names only the two that it uses itself.
        self._env.schedule(event, cast(EventPriority, rank), delay)

    def next_event_ns(self) -> int:
        """Time of the next event, FOREVER if there is none."""
        next_ns = self._env.peek()
        return FOREVER if next_ns == _NO_EVENT else int(next_ns)

    def step(self) -> None:
        """Process the next event.

        Raises:
            simpy.core.EmptySchedule: there is none.
        """
        next_ns = self.next_event_ns()
        if next_ns < FOREVER:
            self._now_ns = next_ns
        self._env.step()
