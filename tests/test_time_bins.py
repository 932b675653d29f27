"""Averaging over bins of time, against counting nanosecond by nanosecond."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.metrics.time_bins import Bins, Intervals

INTERVALS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 9)))


@given(INTERVALS, st.integers(1, 7))
def test_means_are_those_of_every_nanosecond(
    intervals: list[tuple[int, int, int]], count: int
) -> None:
    """The mean over a bin equals the mean of the level at each nanosecond in it."""
    bins = Bins.over(0, 6 * count, count)
    begin, end, value = (np.array([row[i] for row in intervals], np.int64) for i in range(3))
    level = np.zeros(100)
    for since, until, height in intervals:
        level[since:until] += height
    expected = level[: 6 * count].reshape(count, 6).mean(axis=1)
    assert Intervals(begin, end, bins).mean(value) == pytest.approx(expected, abs=1e-9)


def test_the_largest_value_of_each_bin_is_found() -> None:
    """A moment on an edge belongs to the bin that begins there, the last edge to the last bin."""
    bins = Bins.over(0, 30, 3)
    largest = bins.largest([0, 9, 10, 30], [1, 5, 2, 7])
    assert largest.tolist() == [5, 2, 7]


def test_a_run_without_length_still_has_bins() -> None:
    """No division by zero for a run that ends as it starts."""
    bins = Bins.over(5, 5, 2)
    assert np.isfinite(Intervals([5], [5], bins).mean([3])).all()
