"""What the replicas did over time: time-weighted metrics of the `steps` table.

What a step says about a replica (`running`, `waiting`, pages) was true from its planning until the
next planning. When the last request of a replica ends, nothing runs and nothing waits there until
the next arrival; such a pause counts as idle, and the prefix cache keeps its pages through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.core.enums import AdmissionBlock
from engine.core.events import Columns
from workbench.metrics.latency import NS_PER_S

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_END_OF_TIME = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Timeline:
    """Steps by replica and time, with how long the state of each lasted.

    Attributes:
        steps: the `steps` table, ordered by replica and step.
        busy_end_ns: int64[n], until when the state held: the next planning, or the end of the step
            if no request was left then.
        next_plan_ns: int64[n], the next planning of the replica; the end of the run for the last.
    """

    steps: Columns
    busy_end_ns: Int64
    next_plan_ns: Int64

    @classmethod
    def of(cls, steps: Columns, requests: Columns, run_end_ns: int) -> Timeline:
        """From the `steps` and `requests` tables of a run."""
        ordered = _in_order(steps)
        next_plan = np.full(len(steps["step"]), max(run_end_ns, 0), np.int64)
        same = ordered["replica"][1:] == ordered["replica"][:-1]
        next_plan[:-1][same] = ordered["plan_ns"][1:][same]
        end = ordered["end_ns"].astype(np.int64)
        idle = (next_plan > end) & (_in_system(ordered, requests) == 0)
        return cls(ordered, np.where(idle, end, next_plan), next_plan)

    def within(self, start_ns: int, end_ns: int) -> Window:
        """The part of the run between two moments."""
        plan_ns = self.steps["plan_ns"].astype(np.int64)
        state_s = _overlap_s(plan_ns, self.busy_end_ns, start_ns, end_ns)
        return Window(self, start_ns, end_ns, state_s)


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a timeline over which metrics are taken.

    Attributes:
        state_s: float64[n], seconds of the window in which each step's state held.
    """

    timeline: Timeline
    start_ns: int
    end_ns: int
    state_s: Float64

    def seconds(self) -> float:
        """Length of the window."""
        return (self.end_ns - self.start_ns) / NS_PER_S

    def cache_s(self) -> Float64:
        """As `state_s` for what outlives idle pauses: the pages of the prefix cache."""
        plan_ns = self.timeline.steps["plan_ns"].astype(np.int64)
        return _overlap_s(plan_ns, self.timeline.next_plan_ns, self.start_ns, self.end_ns)

    def gpu_ns(self) -> int:
        """Time of the window that GPUs spent on steps."""
        start = self.timeline.steps["start_ns"].astype(np.int64)
        end = start + self.timeline.steps["gpu_ns"]
        return int(_overlap_ns(start, end, self.start_ns, self.end_ns).sum())

    def busy_ns(self) -> int:
        """Time of the window in which replicas had requests."""
        plan_ns = self.timeline.steps["plan_ns"].astype(np.int64)
        end_ns = self.timeline.busy_end_ns
        return int(_overlap_ns(plan_ns, end_ns, self.start_ns, self.end_ns).sum())

    def steps(self, names: Sequence[str]) -> Columns:
        """The named columns of the steps that began in the window."""
        columns = self.timeline.steps
        kept = (columns["start_ns"] >= self.start_ns) & (columns["start_ns"] <= self.end_ns)
        return {name: columns[name][kept] for name in names}


@dataclass(frozen=True, slots=True)
class Utilisation:
    """How replicas spent their time; the three shares sum to 1.

    Attributes:
        gpu_busy: GPU seconds of steps / (replicas * seconds).
        host_bound: requests were there but the GPU waited for planning, launching or committing.
        idle: no request was there.
    """

    gpu_busy: float
    host_bound: float
    idle: float


def utilisation(window: Window, replicas: int) -> Utilisation | None:
    """None for a window without length. Whole ns are subtracted: no share rounds to -0.00."""
    total = (window.end_ns - window.start_ns) * replicas
    if total <= 0:
        return None
    gpu, busy = window.gpu_ns(), window.busy_ns()
    return Utilisation(gpu / total, (busy - gpu) / total, (total - busy) / total)


@dataclass(frozen=True, slots=True)
class KvOccupancy:
    """Shares of the KV pages of all replicas, 0 to 1.

    Attributes:
        used_mean: time-weighted mean of pages held by requests.
        used_max: the most that requests held on any one replica after planning a step.
        cached_mean: time-weighted mean of pages that only the prefix cache held (evictable).
    """

    used_mean: float
    used_max: float
    cached_mean: float


def kv_occupancy(window: Window, num_pages: Int64) -> KvOccupancy | None:
    """`num_pages` int64[replicas]. None for a window without length."""
    total = float(num_pages.sum()) * window.seconds()
    if total <= 0:
        return None
    state_s = window.state_s
    used = used_pages(window.timeline.steps, num_pages)
    of_pool = used / num_pages[window.timeline.steps["replica"]]
    return KvOccupancy(
        used_mean=float(np.dot(used, state_s)) / total,
        used_max=float(of_pool[state_s > 0].max(initial=0.0)),
        cached_mean=float(np.dot(window.timeline.steps["cached_pages"], window.cache_s())) / total,
    )


def used_pages(steps: Columns, num_pages: Int64) -> Int64:
    """int64[n], pages that requests hold: neither free nor held by the prefix cache alone."""
    free = steps["free_pages"].astype(np.int64)
    return num_pages[steps["replica"]] - free - steps["cached_pages"]


def time_mean(window: Window, column: str) -> float | None:
    """Time-weighted mean of a state column, summed over replicas; None without length."""
    if window.seconds() <= 0:
        return None
    return float(np.dot(window.timeline.steps[column], window.state_s)) / window.seconds()


def waiting_by_reason(window: Window) -> dict[AdmissionBlock, float]:
    """Request-seconds spent in the queue, by why its head was not admitted.

    The `waiting` requests of a step wait until the next planning, for the reason that held back the
    first of them. The wait for that first planning is `waiting_for_next_step`.
    """
    steps = window.timeline.steps
    spent = steps["waiting"] * window.state_s
    size = max(AdmissionBlock) + 1
    sums = np.bincount(steps["block_reason"], weights=spent, minlength=size)
    return {reason: float(sums[reason]) for reason in AdmissionBlock}


def waiting_for_next_step(timeline: Timeline, requests: Columns) -> float:
    """Request-seconds between an arrival and the next planning on its replica.

    Requests that arrive after the last planning wait for none and are left out.
    """
    total = 0
    for replica, plans in _by_replica(timeline.steps, "plan_ns"):
        arrived = np.sort(_of_replica(requests, replica, "arrival_ns"))
        arrived = arrived[arrived >= 0]
        row = np.searchsorted(plans, arrived, side="left")
        met = row < len(plans)
        total += int((plans[row[met]] - arrived[met]).sum())
    return total / NS_PER_S


def _in_order(steps: Columns) -> Columns:
    """Steps by replica and number; those of one replica mostly are in order already."""
    one_replica = (steps["replica"] == 0).all()
    if one_replica and (steps["step"][1:] > steps["step"][:-1]).all():
        return steps
    order = np.lexsort((steps["step"], steps["replica"]))
    return {name: column[order] for name, column in steps.items()}


def _overlap_s(begin_ns: Int64, end_ns: Int64, window_start_ns: int, window_end_ns: int) -> Float64:
    """Seconds of each interval inside the window, float64[n]."""
    overlap = _overlap_ns(begin_ns, end_ns, window_start_ns, window_end_ns)
    return np.asarray(overlap / NS_PER_S, np.float64)


def _overlap_ns(begin_ns: Int64, end_ns: Int64, window_start_ns: int, window_end_ns: int) -> Int64:
    """ns of each interval inside the window, int64[n]."""
    begin = np.maximum(begin_ns, window_start_ns)
    end = np.minimum(end_ns, window_end_ns)
    return np.asarray(np.maximum(end - begin, 0), np.int64)


def _in_system(steps: Columns, requests: Columns) -> Int64:
    """int64[n], requests on the step's replica right after its results were committed."""
    count = np.zeros(len(steps["step"]), np.int64)
    for replica in np.unique(steps["replica"]):
        here = steps["replica"] == replica
        end = steps["end_ns"][here]
        arrived = np.sort(_of_replica(requests, int(replica), "arrival_ns"))
        gone = _of_replica(requests, int(replica), "finish_ns")
        gone = np.sort(np.where(gone < 0, _END_OF_TIME, gone))
        count[here] = np.searchsorted(arrived, end, side="right") - np.searchsorted(
            gone, end, side="right"
        )
    return count


def _by_replica(steps: Columns, column: str) -> list[tuple[int, Int64]]:
    """Each replica with one of its columns, in order of steps."""
    replicas = np.unique(steps["replica"])
    return [(int(r), steps[column][steps["replica"] == r].astype(np.int64)) for r in replicas]


def _of_replica(requests: Columns, replica: int, column: str) -> Int64:
    return np.asarray(requests[column][requests["replica"] == replica], np.int64)
