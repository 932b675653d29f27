"""Two runs laid side by side: which step of B belongs to which of A, and how they differ there.

Three locks say what belongs together: equal numbers of *steps*; equal *time*; or equal *arrivals*,
where the time between two arrivals of A is stretched to that between the same two requests in B, so
that a run that lags behind still shows the same work beside the same work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.tui.store.request_book import RequestBook
from workbench.tui.store.run_store import RunStore
from workbench.tui.store.step_log import StepLog

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

Lock = Literal["arrival", "time", "step"]
LOCKS: Final[tuple[Lock, ...]] = ("arrival", "time", "step")
NONE: Final = -1
DELTAS: Final = ("tokens", "running", "waiting", "used_pages")
_SLOWER: Final = 0.05  # share by which a duration must differ to be worth a sign


@dataclass(frozen=True, slots=True)
class ColumnDeltas:
    """B - A over columns; arrays have an entry per column.

    Attributes:
        mean: name of `DELTAS` -> float64; NaN where a run has no step.
        decisions: bool, some step batches something else in B.
        durations: bool, no step does, but some take another time.
    """

    mean: dict[str, Float64]
    decisions: Bool
    durations: Bool


class Pairing:
    """The steps of one replica of A, each with its counterpart in B.

    Args:
        a, b: the runs.
        replica: number of the replica of A; B's last one, if B has fewer.
        lock: what belongs together.

    Attributes:
        match: int64[steps of A], position in B; `NONE` where B has ended, or has not come so far.
    """

    def __init__(self, a: RunStore, b: RunStore, replica: int, lock: Lock) -> None:
        self.lock = lock
        self.a = a.replicas[replica].steps
        self.b = b.replicas[min(replica, len(b.replicas) - 1)].steps
        self._map = _time_map(a, b, lock)
        self.match = self._match()

    def position_in_b(self, position: int) -> int:
        """The counterpart of a position of A; `NONE` if there is none."""
        at = position - self.a.first
        return int(self.match[at]) if 0 <= at < len(self.match) else NONE

    def drift_ns(self, position: int) -> int | None:
        """How much later than in A the counterpart ended in B; None without one."""
        other = self.position_in_b(position)
        if other == NONE:
            return None
        return self.b.at(other)["end_ns"] - self.a.at(position)["end_ns"]

    def columns(self, first: Int64, last: Int64) -> ColumnDeltas:
        """How B differs over columns of A's positions [first, last)."""
        low, high = first - self.a.first, last - self.a.first
        known = np.cumsum(np.append(0, self.match != NONE))
        count = known[high] - known[low]
        mean = {}
        for name, sums in self._delta_sums.items():
            total = (sums[high] - sums[low]).astype(np.float64)
            mean[name] = np.divide(total, count, np.full(len(first), np.nan), where=count > 0)
        decisions = self._decision_sums[high] > self._decision_sums[low]
        durations = self._duration_sums[high] > self._duration_sums[low]
        return ColumnDeltas(mean, decisions, durations & ~decisions)

    def columns_of_b(self, first: Int64, last: Int64) -> tuple[Int64, Int64]:
        """Positions of B beside columns of A, [first, last); both `NONE` where B has none."""
        low, high = first - self.a.first, np.minimum(last - self.a.first, len(self.match))
        begin, after = self.match[low], np.append(self.match, NONE)[high]
        end = np.where(after == NONE, self.match[np.maximum(high - 1, 0)] + 1, after)
        end = np.maximum(end, begin + 1)
        return begin, np.where(begin == NONE, NONE, end)

    def next_difference(self, position: int, forward: bool = True) -> int | None:
        """The next position of A where B decides otherwise, after a stretch where it does not."""
        differs = self._decides_otherwise
        starts = np.flatnonzero(differs & ~np.append(False, differs[:-1])) + self.a.first
        if forward:
            later = starts[starts > position]
            return int(later[0]) if len(later) else None
        earlier = starts[starts < position]
        return int(earlier[-1]) if len(earlier) else None

    @cached_property
    def _delta_sums(self) -> dict[str, Int64]:
        """Sums of B - A over A's steps before each, int64[steps + 1]; steps without pair are 0."""
        sums = {}
        for name in DELTAS:
            delta = np.where(self._paired, self._of_b(name) - _values(self.a, name), 0)
            sums[name] = np.append(0, np.cumsum(delta))
        return sums

    @cached_property
    def _decision_sums(self) -> Int64:
        return np.append(0, np.cumsum(self._decides_otherwise))

    @cached_property
    def _duration_sums(self) -> Int64:
        ours, theirs = _values(self.a, "gpu_ns"), self._of_b("gpu_ns")
        slower = np.abs(theirs - ours) > _SLOWER * np.maximum(ours, 1)
        return np.append(0, np.cumsum(slower & self._paired))

    @cached_property
    def _decides_otherwise(self) -> Bool:
        names = ("prefill_tokens", "decode_requests", "retracted")
        differs = np.zeros(len(self.match), np.bool_)
        for name in names:
            differs |= self._of_b(name) != _values(self.a, name)
        return differs & self._paired

    @cached_property
    def _paired(self) -> Bool:
        return np.asarray(self.match != NONE)

    def _of_b(self, name: str) -> Int64:
        values = _values(self.b, name)
        if not len(values):
            return np.zeros(len(self.match), np.int64)
        at = np.clip(self.match - self.b.first, 0, len(values) - 1)
        return values[at]

    def _match(self) -> Int64:
        if not len(self.a) or not len(self.b):
            return np.full(len(self.a), NONE, np.int64)
        if self.lock == "step":
            position = np.arange(self.a.first, self.a.end)
            inside = (position >= self.b.first) & (position < self.b.end)
            return np.where(inside, position, NONE)
        end_ns = self.b.column("end_ns")
        t_ns = self._map(self.a.column("end_ns").astype(np.float64))
        at = np.searchsorted(end_ns, np.floor(t_ns + 0.5), side="right") - 1
        over = t_ns > float(end_ns[-1]) + float(self.b.column("period_ns")[-1])
        return np.where(over | (at < 0), NONE, at + self.b.first).astype(np.int64)


class _Identity:
    """Time of A is time of B."""

    def __call__(self, t_ns: Float64) -> Float64:
        return t_ns


class _Stretched:
    """Time of A to time of B, straight between knots, and at the same pace outside of them."""

    def __init__(self, in_a: Int64, in_b: Int64) -> None:
        self._a, self._b = in_a.astype(np.float64), in_b.astype(np.float64)

    def __call__(self, t_ns: Float64) -> Float64:
        inside = np.interp(t_ns, self._a, self._b)
        before, after = t_ns < self._a[0], t_ns > self._a[-1]
        inside = np.where(before, t_ns - self._a[0] + self._b[0], inside)
        return np.where(after, t_ns - self._a[-1] + self._b[-1], inside)


def _time_map(a: RunStore, b: RunStore, lock: Lock) -> _Identity | _Stretched:
    if lock != "arrival":
        return _Identity()
    in_a, in_b = common_arrivals(a.requests, b.requests)
    return _Stretched(in_a, in_b) if len(in_a) > 1 else _Identity()


def common_arrivals(a: RequestBook, b: RequestBook) -> tuple[Int64, Int64]:
    """When requests that both runs have got arrived, by time in A; both never fall."""
    count = min(len(a), len(b))
    in_a = a.column("arrival_ns")[:count]
    in_b = b.column("arrival_ns")[:count]
    both = (in_a >= 0) & (in_b >= 0)
    in_a, in_b = in_a[both], in_b[both]
    order = np.argsort(in_a, kind="stable")
    in_a, in_b = in_a[order], np.maximum.accumulate(in_b[order]) if len(order) else in_b
    first = np.flatnonzero(np.diff(in_a, prepend=-1))
    return in_a[first], in_b[first]


def common_ttft_ms(a: RequestBook, b: RequestBook) -> tuple[Int64, Float64, Float64]:
    """Ids and TTFT in both runs of the requests that have given a token in both."""
    count = min(len(a), len(b))
    first_a, first_b = (book.column("first_token_ns")[:count] for book in (a, b))
    ids = np.flatnonzero((first_a >= 0) & (first_b >= 0))
    waits = [
        (book.column("first_token_ns")[ids] - book.column("arrival_ns")[ids]) / 1e6
        for book in (a, b)
    ]
    return ids, waits[0], waits[1]


def _values(steps: StepLog, name: str) -> Int64:
    if name == "used_pages":  # what is lacking to all pages differs as what is used does
        return -(_values(steps, "free_pages") + _values(steps, "cached_pages"))
    return steps.column(name).astype(np.int64)
