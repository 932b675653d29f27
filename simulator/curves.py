"""Functions linear between knots: time over context of decode graphs, and what sharing saves.

Whole places give whole ns, by the same operations one by one and in numpy.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.cost_model import Int64, StepFeatures, whole_ns
from simulator.interpolation import interpolated
from simulator.profile import DecodeTable, SharedFit


class Curve:
    """A function linear between knots: flat before the first, beyond the last with its slope.

    At whole places it never descends: what rounding adds to a segment is less than what the place
    before its end falls short of the end, unless knots are 2**51 apart.

    Args:
        at: ascending whole places, two at least.
        ns: values there, not descending.
        least: no whole value is less: 0 or 1.
    """

    def __init__(self, at: Sequence[float], ns: Sequence[float], *, least: int = 1) -> None:
        self._least = least
        self.at = np.array(at, np.float64)
        self.ns = np.array(ns, np.float64)
        self._slope = np.diff(self.ns) / np.diff(self.at)
        segments = (self.at[:-1].tolist(), self.ns[:-1].tolist(), self._slope.tolist())
        self._segments: list[tuple[float, float, float]] = list(zip(*segments, strict=True))
        self._inner: list[float] = self.at[1:-1].tolist()
        self.first_ns = max(least, int(self.ns[0] + 0.5))

    def whole_ns(self, place: int) -> int:
        """The value at a place in whole ns."""
        start, ns, slope = self._segments[bisect_right(self._inner, place)]
        beyond = place - start
        return int(ns + slope * (beyond if beyond > 0.0 else 0.0) + 0.5) or self._least

    def whole_column(self, places: Int64) -> Int64:
        """`whole_ns` of many places."""
        return np.maximum(whole_ns(self.column(places)), self._least)

    def column(self, places: NDArray[np.integer | np.floating]) -> NDArray[np.float64]:
        """Values at many places, not rounded."""
        index = np.searchsorted(self.at[1:-1], places.astype(np.float64), side="right")
        beyond = np.maximum(places - self.at[index], 0.0)
        values: NDArray[np.float64] = self.ns[index] + self._slope[index] * beyond
        return values

    def run(self, places: range) -> list[int]:
        """`whole_ns` of ascending places."""
        whole: list[int] = []
        least = self._least
        while len(whole) < len(places):
            rest = places[len(whole) :]
            segment = bisect_right(self._inner, rest[0])
            if segment < len(self._inner):
                rest = rest[: bisect_left(rest, self._inner[segment])]
            start, ns, slope = self._segments[segment]
            if rest[0] < start:  # before the first knot
                whole += map(self.whole_ns, rest)
            else:
                whole += [int(ns + slope * (place - start) + 0.5) or least for place in rest]
        return whole


class DecodeCurves:
    """Pure decode steps by the batch of their graph; false if there are none.

    Args:
        tables: by ascending graph batch.
        rise_ns: what a step of more rows takes longer than one of fewer, but for attention; None:
            it is not known, and graphs beyond all that were measured take no longer.
    """

    def __init__(
        self,
        tables: Sequence[DecodeTable],
        rise_ns: Callable[[int, int], float] | None = None,
    ) -> None:
        self._rise_ns = rise_ns
        self._measured = [table.graph_batch for table in tables]
        self._curves = {table.graph_batch: Curve(table.context, table.ns) for table in tables}
        self._idle_row_ns = {table.graph_batch: table.idle_row_ns for table in tables}

    def __bool__(self) -> bool:
        return bool(self._measured)

    def curve(self, graph_batch: int) -> Curve:
        """Time over decode_context of a graph batch, measured or not."""
        known = self._curves.get(graph_batch)
        if known is not None:
            return known
        if graph_batch < self._measured[0]:
            return self._curves[self._measured[0]]
        if graph_batch > self._measured[-1]:
            self._curves[graph_batch] = self._beyond(graph_batch)
            return self._curves[graph_batch]
        at = bisect_left(self._measured, graph_batch)
        curve = self._between(self._measured[at - 1], self._measured[at], graph_batch)
        self._curves[graph_batch] = curve  # there are no more of these than rows of a graph
        return curve

    def idle_ns(self, graph_batch: int, requests: int) -> int:
        """As much less than `curve` says takes a step of so many requests, which may be fewer.

        Of a graph beyond all that were measured, rows save as much as of the largest, and those
        that it has more save nothing.
        """
        alike = min(graph_batch, self._measured[-1]) - requests - 1
        row_ns = self._idle_row(graph_batch)
        if alike <= 0 or not row_ns:
            return 0
        return min(int(row_ns * alike + 0.5), self.curve(graph_batch).first_ns - 1)

    def is_outside(self, graph_batch: int) -> bool:
        """Whether a graph batch is smaller or larger than all that were measured."""
        return graph_batch < self._measured[0] or graph_batch > self._measured[-1]

    def are_outside(self, graph_batches: Int64) -> NDArray[np.bool_]:
        """`is_outside` of many graph batches."""
        return (graph_batches < self._measured[0]) | (graph_batches > self._measured[-1])

    def terms(self, graph_batches: Int64, contexts: Int64, requests: Int64) -> tuple[Int64, Int64]:
        """(tokens, attention_decode) of many steps."""
        tokens, attention = np.zeros_like(contexts), np.zeros_like(contexts)
        for graph_batch in np.unique(graph_batches).tolist():
            rows = np.flatnonzero(graph_batches == graph_batch)
            curve = self.curve(graph_batch)
            alike = np.maximum(min(graph_batch, self._measured[-1]) - requests[rows] - 1, 0)
            idle_ns = whole_ns(self._idle_row(graph_batch) * alike)
            tokens[rows] = curve.first_ns - np.minimum(idle_ns, curve.first_ns - 1)
            attention[rows] = curve.whole_column(contexts[rows]) - curve.first_ns
        return tokens, attention

    def _idle_row(self, graph_batch: int) -> float:
        """What a row saves that is like another; linear between the graphs that were measured."""
        known = self._idle_row_ns.get(graph_batch)
        if known is None:
            measured = [self._idle_row_ns[batch] for batch in self._measured]
            known = float(np.interp(graph_batch, self._measured, measured))
            self._idle_row_ns[graph_batch] = known
        return known

    def _beyond(self, graph_batch: int) -> Curve:
        """The largest that was measured, longer by what its further rows compute."""
        largest = self._measured[-1]
        curve = self._curves[largest]
        if self._rise_ns is None:
            return curve
        ns = curve.ns + max(0.0, self._rise_ns(largest, graph_batch))
        return Curve(curve.at.tolist(), ns.tolist())

    def _between(self, smaller: int, larger: int, graph_batch: int) -> Curve:
        """Both neighbours at the same context per row, mixed: linear between the knots of both."""
        low, high = self._curves[smaller], self._curves[larger]
        per_row = np.union1d(low.at / smaller, high.at / larger)
        at = np.unique(np.floor(per_row * graph_batch + 0.5))  # knots that are one in truth
        low_ns = low.column(at * (smaller / graph_batch))
        high_ns = high.column(at * (larger / graph_batch))
        share = (graph_batch - smaller) / (larger - smaller)
        ns = np.maximum.accumulate(low_ns + share * (high_ns - low_ns))
        return Curve(at.tolist(), ns.tolist())


class SharedContext:
    """What decode items save that share their context."""

    def __init__(self, fit: SharedFit) -> None:
        self._at = np.array(fit.shared, np.float64)
        self._saved = np.array(fit.saved, np.float64)
        self._slope = np.diff(self._saved) / np.diff(self._at)
        segments = (self._at[:-1].tolist(), self._saved[:-1].tolist(), self._slope.tolist())
        self._segments: list[tuple[float, float, float]] = list(zip(*segments, strict=True))
        self._inner: list[float] = self._at[1:-1].tolist()
        self._requests, self._times = fit.requests or (0,), fit.times or (1.0,)

    def saved(self, shared: int, requests: int) -> int:
        """Tokens of decode_context that cost nothing, of so many items that share so much."""
        if not requests:
            return 0
        each = shared / requests
        start, saved, slope = self._segments[bisect_right(self._inner, each)]
        times = interpolated(requests, self._requests, self._times)
        return int(requests * (saved + slope * (each - start)) * times + 0.5)

    def attended(self, features: StepFeatures) -> Int64:
        """decode_context without what costs nothing: int64[n]."""
        requests = features.decode_requests
        each = features.shared_context / np.maximum(requests, 1)
        index = np.searchsorted(self._at[1:-1], each, side="right")
        saved = self._saved[index] + self._slope[index] * (each - self._at[index])
        attended: Int64 = features.decode_context - whole_ns(
            requests * saved * self._times_of(requests)
        )
        return attended

    def _times_of(self, requests: Int64) -> NDArray[np.float64]:
        """How many times as much is saved by so many: float64[n]."""
        found, places = np.unique(requests, return_inverse=True)
        times = [interpolated(count, self._requests, self._times) for count in found.tolist()]
        return np.array(times, np.float64)[places]
