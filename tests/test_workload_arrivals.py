"""Laws of the arrival processes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.workload import Int64
from workbench.workload import arrivals

N = 100_000
KS_LIMIT = 1.95 / math.sqrt(N)  # exceeded by chance once in a thousand


def _rng(seed: int = 7) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _gaps_s(arrival_ns: Int64) -> np.ndarray:
    return np.diff(arrival_ns, prepend=0) / 1e9


def _ks_distance(probabilities: np.ndarray) -> float:
    """Largest distance of the empirical distribution from the uniform one on [0, 1]."""
    ordered = np.sort(probabilities)
    ranks = np.arange(1, len(ordered) + 1) / len(ordered)
    return float(np.maximum(ranks - ordered, ordered - ranks + 1 / len(ordered)).max())


def test_poisson_gaps_are_exponential() -> None:
    """The gaps' distribution is 1 - exp(-rate t) and they are not correlated."""
    gaps = _gaps_s(arrivals.poisson_arrivals(_rng(), N, 24.0))
    assert _ks_distance(-np.expm1(-24.0 * gaps)) < KS_LIMIT
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 5 / math.sqrt(N)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_burstiness_sets_the_spread_and_not_the_rate(burstiness: float) -> None:
    """Gamma gaps have mean 1 / rate and coefficient of variation 1 / sqrt(burstiness)."""
    gaps = _gaps_s(arrivals.gamma_arrivals(_rng(), N, 10.0, burstiness))
    variation = 1 / math.sqrt(burstiness)
    assert gaps.mean() == pytest.approx(0.1, abs=5 * 0.1 * variation / math.sqrt(N))
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.03)


def test_burstiness_one_is_poisson() -> None:
    """The gamma distribution of shape 1 is the exponential one."""
    gaps = _gaps_s(arrivals.gamma_arrivals(_rng(), N, 24.0, 1.0))
    assert _ks_distance(-np.expm1(-24.0 * gaps)) < KS_LIMIT


def test_constant_arrivals_do_not_drift() -> None:
    """Request i comes at i / rate, rounded once and never accumulated."""
    arrival_ns = arrivals.constant_arrivals(N, 3.0)
    assert arrival_ns[:4].tolist() == [0, 333_333_333, 666_666_667, 1_000_000_000]
    assert arrival_ns[-1] == round((N - 1) * 1e9 / 3)


def test_all_at_once_is_at_zero() -> None:
    """Everything is there when the run starts."""
    assert arrivals.all_at_once(3).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("start", "end"), [(0.0, 20.0), (20.0, 0.0), (5.0, 50.0), (8.0, 8.0)])
def test_ramp_counts_follow_the_integral_of_the_rate(start: float, end: float) -> None:
    """Lambda(arrival) / n is uniform on [0, 1], and the ramp lasts 2 n / (start + end) seconds."""
    seconds = arrivals.ramp_arrivals(_rng(), N, start, end) / 1e9
    ramp_s = 2 * N / (start + end)
    assert 0.99 * ramp_s < seconds[-1] <= ramp_s
    expected = start * seconds + (end - start) * seconds**2 / (2 * ramp_s)
    assert _ks_distance(expected / N) < KS_LIMIT


def test_ramp_reaches_its_end_rate() -> None:
    """In the last hundredth of the ramp, the rate is the end rate."""
    seconds = arrivals.ramp_arrivals(_rng(), N, 0.0, 20.0) / 1e9
    ramp_s = N / 10.0
    late = np.count_nonzero(seconds > 0.99 * ramp_s)
    assert late == pytest.approx(0.01 * ramp_s * 20.0 * 0.995, abs=5 * math.sqrt(2000))


def test_time_scale_multiplies_times() -> None:
    """0.5 sends twice as fast; 1 leaves even huge times exact."""
    times = np.array([0, 3, 2**62 - 1], np.int64)
    np.testing.assert_array_equal(arrivals.scaled_arrivals(times, 1.0), times)
    scaled = arrivals.scaled_arrivals(np.array([0, 1000, 3001], np.int64), 0.5)
    assert scaled.tolist() == [0, 500, 1500]


@settings(deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(0, 300),
    st.floats(1e-3, 1e6),
    st.floats(1e-3, 1e3),
    st.floats(0, 1e6),
)
def test_arrivals_are_ordered_int64_from_zero_on(
    seed: int, n: int, rate: float, burstiness: float, other_rate: float
) -> None:
    """Whatever the parameters, n times that never go back."""
    for times in (
        arrivals.poisson_arrivals(_rng(seed), n, rate),
        arrivals.gamma_arrivals(_rng(seed), n, rate, burstiness),
        arrivals.constant_arrivals(n, rate),
        arrivals.ramp_arrivals(_rng(seed), n, rate, other_rate),
        arrivals.ramp_arrivals(_rng(seed), n, other_rate, rate),
        arrivals.scaled_arrivals(arrivals.constant_arrivals(n, rate), burstiness),
    ):
        assert times.dtype == np.int64
        assert len(times) == n
        assert (times >= 0).all()
        assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: arrivals.poisson_arrivals(_rng(), 1, 0.0), "request_rate must be"),
        (lambda: arrivals.poisson_arrivals(_rng(), 1, math.inf), "request_rate must be"),
        (lambda: arrivals.gamma_arrivals(_rng(), 1, 1.0, -1.0), "burstiness must be"),
        (lambda: arrivals.constant_arrivals(1, math.nan), "request_rate must be"),
        (lambda: arrivals.ramp_arrivals(_rng(), 1, 0.0, 0.0), "start_rate"),
        (lambda: arrivals.ramp_arrivals(_rng(), 1, -1.0, 2.0), "at least 0"),
        (lambda: arrivals.scaled_arrivals(np.zeros(1, np.int64), 0.0), "time_scale must be"),
        (lambda: arrivals.constant_arrivals(9, 1e-9), "the last request would arrive after"),
        (
            lambda: arrivals.scaled_arrivals(np.array([2**61]), 1e6),
            "the last request would arrive after",
        ),
    ],
)
def test_impossible_processes_are_refused(make: object, message: str) -> None:
    """A rate that is none, or times beyond int64, are errors."""
    with pytest.raises(ValueError, match=message):
        make()
