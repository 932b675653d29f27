"""When the device did nothing, for how long, and what it was waiting for.

The device is busy while any kernel or copy runs, on any stream; what is left is gaps, so that busy
and idle time sum to the whole. With programmatic dependent launch a kernel starts while the one
before it still runs, and waits: what a kernel *adds* is the time from the end of all before it.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engine.profiling.op_classes import RANGE
from workbench.profile.trace import DeviceWork, HostWork, Trace

BINS: Final = ("< 1 us", "1-5 us", "5-20 us", "> 20 us")
_EDGES: Final = (1.0, 5.0, 20.0)
_LATE_US: Final = 1.0  # a launch that returns no earlier before the gap ends is what it waited for
DEVICE_CAUSE: Final = "the device itself: start of a kernel, or its dependency on another"


@dataclass(frozen=True, slots=True)
class Gap:
    """A piece of time in which the device did nothing.

    Attributes:
        start_us: when it began.
        duration_us: how long it was.
        before, after: the kernels around it.
        cause: what of the host it was waiting for, in words.
    """

    start_us: float
    duration_us: float
    before: str
    after: str
    cause: str


@dataclass(frozen=True, slots=True)
class Occupation:
    """How a device spent its time.

    Attributes:
        total_us: from the first start to the last end.
        busy_us: of that, while anything ran.
        gaps: in order.
        added_us: what each piece of work added, in their order; they sum to `busy_us`.
    """

    total_us: float
    busy_us: float
    gaps: tuple[Gap, ...]
    added_us: tuple[float, ...]

    @property
    def idle_us(self) -> float:
        """Sum of all gaps."""
        return sum(gap.duration_us for gap in self.gaps)

    @property
    def busy_share(self) -> float:
        """0 to 1; 0 if there was nothing."""
        return self.busy_us / self.total_us if self.total_us else 0.0

    def histogram(self) -> list[tuple[str, int, float]]:
        """(name, gaps, us) of each of `BINS`."""
        counts, sums = [0] * len(BINS), [0.0] * len(BINS)
        for gap in self.gaps:
            place = bisect.bisect_right(_EDGES, gap.duration_us)
            counts[place] += 1
            sums[place] += gap.duration_us
        return list(zip(BINS, counts, sums, strict=True))

    def longest(self, count: int) -> list[Gap]:
        """The longest gaps, the longest first."""
        return sorted(self.gaps, key=lambda gap: -gap.duration_us)[:count]


def occupation(trace: Trace) -> Occupation:
    """How the device of a trace spent its time."""
    work = trace.device
    if not work:
        return Occupation(0.0, 0.0, (), ())
    blame = _Blame(trace.host)
    gaps: list[Gap] = []
    added: list[float] = []
    latest = work[0]
    for one in work:
        if one.start_us > latest.end_us:
            length = one.start_us - latest.end_us
            cause = blame.cause(latest.end_us, one)
            gaps.append(Gap(latest.end_us, length, latest.name, one.name, cause))
        added.append(max(0.0, one.end_us - max(one.start_us, latest.end_us)))
        if one is work[0]:
            added[0] = one.duration_us
        if one.end_us > latest.end_us:
            latest = one
    total = latest.end_us - work[0].start_us
    return Occupation(total, sum(added), tuple(gaps), tuple(added))


class _Blame:
    """Finds what the host did while the device waited."""

    def __init__(self, host: Sequence[HostWork]) -> None:
        self._launches = {work.correlation: work for work in host if work.correlation >= 0}
        self._threads: dict[str, list[HostWork]] = {}
        for work in host:
            self._threads.setdefault(work.thread, []).append(work)

    def cause(self, start_us: float, after: DeviceWork) -> str:
        """Why the device did nothing from a time to the start of a piece of work."""
        launch = self._launches.get(after.correlation)
        if launch is None:
            return "unknown: the trace does not tell what launched it"
        if launch.start_us <= start_us - _LATE_US and launch.end_us <= start_us + _LATE_US:
            return DEVICE_CAUSE
        if launch.start_us <= start_us:
            return f"the host, inside {launch.name}"
        return self._during(launch, start_us)

    def _during(self, launch: HostWork, start_us: float) -> str:
        """What the thread of a launch did most between the start of a gap and the launch."""
        spent: dict[str, float] = {}
        stack: list[HostWork] = []
        until = launch.end_us
        at = start_us

        def account(to_us: float) -> None:
            nonlocal at
            to_us = min(to_us, until)
            if to_us > at:
                spent_by = _named(stack)
                spent[spent_by] = spent.get(spent_by, 0.0) + to_us - at
                at = to_us

        for work in self._threads[launch.thread]:
            if work.start_us >= until:
                break
            if work.end_us <= start_us:
                continue
            while stack and stack[-1].end_us <= work.start_us:
                account(stack[-1].end_us)
                stack.pop()
            account(work.start_us)
            stack.append(work)
        while stack:
            account(stack[-1].end_us)
            stack.pop()
        account(until)
        name = max(spent, key=lambda key: spent[key])
        return f"the host, in {name}"


def _named(stack: Sequence[HostWork]) -> str:
    """The innermost range or call, and the range that it is in."""
    if not stack:
        return "Python between calls"
    ranges = [work.name.removeprefix(RANGE) for work in stack if work.kind == "user_annotation"]
    inside = f" of {ranges[-1]}" if ranges else ""
    call = stack[-1].name if stack[-1].kind != "user_annotation" else "Python"
    return f"{call}{inside}"
