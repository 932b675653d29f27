"""Averages over equal stretches of time of what held for a while: a million steps, 240 bins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bins:
    """Equal stretches of time.

    Attributes:
        edges_ns: float64[bins + 1], ascending.
    """

    edges_ns: Float64

    @classmethod
    def over(cls, start_ns: int, end_ns: int, count: int) -> Bins:
        """`count` bins from `start_ns` to `end_ns`, at least 1 ns in all."""
        return cls(np.linspace(start_ns, max(end_ns, start_ns + 1), count + 1))

    @property
    def edges_s(self) -> Float64:
        return self.edges_ns / 1e9

    @property
    def count(self) -> int:
        return len(self.edges_ns) - 1

    def index(self, time_ns: ArrayLike) -> Int64:
        """int64[n], the bin of each moment; moments outside go to the nearest bin."""
        found = np.searchsorted(self.edges_ns, np.asarray(time_ns), side="right") - 1
        return np.clip(found, 0, self.count - 1).astype(np.int64)

    def largest(self, time_ns: ArrayLike, values: ArrayLike) -> Float64:
        """float64[bins], the largest value whose moment lies in each bin; 0 without any."""
        top = np.zeros(self.count)
        np.maximum.at(top, self.index(time_ns), np.asarray(values, np.float64))
        return top


class Intervals:
    """Intervals of time, which may overlap, to be averaged over bins with a value each.

    The sum of values over all intervals open at a moment is a step function of time; its integral
    is piecewise linear, so that its means over any bins are differences of interpolated integrals.

    Args:
        begin_ns, end_ns: int64[n]; an interval that ends before it begins counts as empty.
        bins: over which to average.
    """

    def __init__(self, begin_ns: ArrayLike, end_ns: ArrayLike, bins: Bins) -> None:
        begin = np.asarray(begin_ns, np.float64)
        end = np.maximum(np.asarray(end_ns, np.float64), begin)
        moments = np.concatenate([begin, end])
        self._order = np.argsort(moments, kind="stable")
        self._moments = moments[self._order]
        self._edges = bins.edges_ns

    def mean(self, values: ArrayLike) -> Float64:
        """float64[bins], the mean over each bin of the sum of the values of open intervals."""
        if not len(self._moments):
            return np.zeros(len(self._edges) - 1)
        change = np.asarray(values, np.float64)
        level = np.cumsum(np.concatenate([change, -change])[self._order])
        integral = np.concatenate([[0.0], np.cumsum(level[:-1] * np.diff(self._moments))])
        at_edges = np.interp(self._edges, self._moments, integral)
        return np.asarray(np.diff(at_edges) / np.diff(self._edges), np.float64)
