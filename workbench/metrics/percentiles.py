"""Statistics of samples that carry weights, equal to numpy's on the samples repeated one by one.

A run of 200 million decode steps has as many inter-token gaps but only as many *different* ones as
it has steps; a weight says how often a value occurs, and nothing is ever repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class WeightedSamples:
    """Values and how often each occurs; sorted by value, no weight is zero.

    Attributes:
        values: float64[n], ascending.
        ranks: int64[n], how many samples are <= values[i] (the running sum of the weights).
    """

    values: Float64
    ranks: Int64

    @classmethod
    def of(cls, values: ArrayLike, weights: ArrayLike | None = None) -> WeightedSamples:
        """Samples in any order; weights are non-negative integers, 1 if not given.

        Raises:
            ValueError: the lengths differ or a weight is negative.
        """
        given = np.asarray(values, np.float64)
        if weights is None:
            return cls(np.sort(given), np.arange(1, len(given) + 1))
        counts = np.asarray(weights, np.int64)
        if given.shape != counts.shape or (counts.size and counts.min() < 0):
            raise ValueError("weights must be non-negative, one per value")
        kept = counts > 0
        order = np.argsort(given[kept], kind="stable")
        return cls(given[kept][order], np.cumsum(counts[kept][order]))

    @property
    def count(self) -> int:
        """Number of samples, repetitions counted."""
        return int(self.ranks[-1]) if len(self.ranks) else 0

    @property
    def weights(self) -> Int64:
        """int64[n], how often each value occurs."""
        return np.diff(self.ranks, prepend=0)

    def mean(self) -> float | None:
        """Arithmetic mean; None without samples."""
        if not self.count:
            return None
        return float(np.dot(self.values, self.weights) / self.count)

    def std(self) -> float | None:
        """Population standard deviation, as `numpy.std`; None without samples."""
        mean = self.mean()
        if mean is None:
            return None
        return float(np.sqrt(np.dot((self.values - mean) ** 2, self.weights) / self.count))

    def percentiles(self, percents: Sequence[float]) -> list[float | None]:
        """Percentiles with linear interpolation between closest ranks, as `numpy.percentile`.

        With samples x[0] <= ... <= x[n-1], the q-th percentile lies at position (n - 1) q / 100;
        between two samples it is interpolated. None without samples.
        """
        if not self.count:
            return [None] * len(percents)
        position = np.asarray(percents, np.float64) / 100 * (self.count - 1)
        below = np.floor(position)
        low = self._at(below.astype(np.int64))
        high = self._at(np.minimum(below.astype(np.int64) + 1, self.count - 1))
        return [float(x) for x in _between(low, high, position - below)]

    def _at(self, index: Int64) -> Float64:
        """The samples with these 0-based ranks."""
        found = self.values[np.searchsorted(self.ranks, index, side="right")]
        return np.asarray(found, np.float64)


def _between(low: Float64, high: Float64, share: Float64) -> Float64:
    """Linear interpolation from the nearer end, which is what numpy does against rounding."""
    step = high - low
    return np.where(share < 0.5, low + step * share, high - step * (1 - share))
