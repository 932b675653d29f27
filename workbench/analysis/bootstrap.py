"""How far a difference between two runs could be chance: a block bootstrap.

Requests that follow each other share a queue, so their latencies are correlated. Blocks of
consecutive samples are drawn with replacement instead of single ones (Carlstein, The Use of
Subseries Values for Estimating the Variance of a General Statistic from a Stationary Sequence,
Annals of Statistics 14, 1986), about sqrt(n) blocks of sqrt(n) samples. Draws are seeded with a
constant: the same runs give the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from workbench.analysis.source import Float64, Int64
from workbench.metrics.percentiles import WeightedSamples

DRAWS: Final = 500
CONFIDENCE: Final = 0.95
_SEED: Final = 20_011
_FEWEST_BLOCKS: Final = 8


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval that holds the true difference with `CONFIDENCE`."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the difference is more than chance."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Blocks:
    """Samples in blocks.

    Attributes:
        values: float64[n].
        weights: int64[n], how often each value occurs.
        block: int64[n], in 0..count-1.
        count: number of blocks.
    """

    values: Float64
    weights: Int64
    block: Int64
    count: int

    def means(self, draws: Int64) -> Float64:
        """float64[d], weighted mean of each draw (int64[d, count]); nan without samples."""
        sizes = np.bincount(self.block, self.weights, self.count)
        return _divide(self.sums(draws), draws.astype(np.float64) @ sizes)

    def sums(self, draws: Int64) -> Float64:
        """float64[d], weighted sum of each draw."""
        sums = np.bincount(self.block, self.values * self.weights, self.count)
        return draws.astype(np.float64) @ sums.astype(np.float64)

    def percentiles(self, draws: Int64, percents: Sequence[float]) -> Float64:
        """float64[d, len(percents)]; nan for a draw without samples."""
        order = np.argsort(self.values, kind="stable")
        values, weights, block = self.values[order], self.weights[order], self.block[order]
        rows = []
        for draw in draws:
            ranks = np.cumsum(draw[block] * weights)
            found = WeightedSamples(values, ranks).percentiles(percents)
            rows.append([np.nan if value is None else value for value in found])
        return np.array(rows, np.float64)


def block_numbers(num_samples: int) -> tuple[Int64, int]:
    """Block of each of n consecutive samples, and how many blocks: about sqrt(n), at least 8."""
    count = min(num_samples, max(_FEWEST_BLOCKS, round(float(np.sqrt(num_samples)))))
    return np.arange(num_samples) * count // max(num_samples, 1), count


def draw_blocks(count: int, stream: int) -> Int64:
    """int64[DRAWS, count]: how often each block is drawn, each row summing to `count`."""
    rng = np.random.default_rng((_SEED, stream))
    return rng.multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(np.int64)


def interval_of(differences: Float64) -> Interval | None:
    """The middle `CONFIDENCE` of the differences; None if some draw had nothing to measure."""
    if not len(differences) or np.isnan(differences).any():
        return None
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(differences, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _divide(part: Float64, whole: Float64) -> Float64:
    quotient: Float64 = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return quotient
