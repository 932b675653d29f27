"""Laws of the length and duration distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workbench.workload.lengths import (
    MAX_TOKENS,
    Distribution,
    Fixed,
    Lognormal,
    Uniform,
    UniformWhole,
    Zipf,
    sample_ns,
    sample_tokens,
)

N = 200_000


def _rng() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(20240510))


def test_fixed_lengths_are_all_the_same() -> None:
    """A fixed length has no spread and draws nothing from the generator."""
    rng = _rng()
    lengths = sample_tokens(Fixed(512), rng, 100)
    assert lengths.dtype == np.int32
    assert set(lengths.tolist()) == {512}
    assert rng.random() == _rng().random()


def test_uniform_lengths_reach_both_ends_equally_often() -> None:
    """Each whole number of [3, 7] has a fifth of the probability, the ends included."""
    counts = np.bincount(sample_tokens(UniformWhole(3, 7), _rng(), N), minlength=8)
    assert counts[:3].sum() == 0
    sigma = math.sqrt(N * 0.2 * 0.8)
    assert np.abs(counts[3:] - N / 5).max() < 5 * sigma


@pytest.mark.parametrize(("mean", "std_dev"), [(600.0, 400.0), (50.0, 150.0), (1000.0, 1.0)])
def test_lognormal_mean_and_std_dev_are_those_of_the_variable_itself(
    mean: float, std_dev: float
) -> None:
    """Without clipping, the sample has the mean and the standard deviation that were asked for."""
    samples = Lognormal(mean, std_dev).draw(_rng(), N)
    assert samples.mean() == pytest.approx(mean, abs=5 * std_dev / math.sqrt(N))
    assert samples.std() == pytest.approx(std_dev, rel=0.15)
    logs = np.log(samples)
    sigma = math.sqrt(math.log1p((std_dev / mean) ** 2))
    assert logs.std() == pytest.approx(sigma, rel=0.02)
    assert logs.mean() == pytest.approx(math.log(mean) - sigma**2 / 2, abs=5 * sigma / math.sqrt(N))


def test_lognormal_is_clipped_not_redrawn() -> None:
    """Mass beyond the limits piles up at them."""
    lengths = sample_tokens(Lognormal(100, 200, min=20, max=300), _rng(), N)
    sigma = math.sqrt(math.log1p(4))
    mu = math.log(100) - sigma**2 / 2
    below = 0.5 * math.erfc((mu - math.log(20)) / (sigma * math.sqrt(2)))
    assert lengths.min() == 20
    assert lengths.max() == 300
    assert np.mean(lengths == 20) == pytest.approx(below, abs=0.02)


def test_lognormal_without_spread_is_fixed() -> None:
    """A standard deviation of 0 leaves the mean."""
    assert set(sample_tokens(Lognormal(100, 0), _rng(), 50).tolist()) == {100}


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 2.5])
def test_zipf_frequencies_follow_the_power_law(alpha: float) -> None:
    """The share of k is k ** -alpha over the sum of all, within five standard deviations."""
    low, high = 2, 40
    counts = np.bincount(sample_tokens(Zipf(alpha, low, high), _rng(), N), minlength=high + 1)
    assert counts[:low].sum() == 0
    weights = np.arange(low, high + 1.0) ** -alpha
    expected = weights / weights.sum()
    sigma = np.sqrt(N * expected * (1 - expected))
    assert (np.abs(counts[low:] - N * expected) < 5 * sigma).all()


def test_zipf_with_a_huge_exponent_stays_at_its_minimum() -> None:
    """Weights that underflow are no reason for a wrong draw."""
    assert set(sample_tokens(Zipf(100, 5000, 10_000), _rng(), 1000).tolist()) <= set(
        range(5000, 5600)
    )
    assert set(sample_tokens(Zipf(100, 1, 10_000), _rng(), 1000).tolist()) == {1}


@pytest.mark.parametrize(
    "distribution", [Fixed(5), UniformWhole(1, 9), Lognormal(50, 40, 1, 99), Zipf(1.1, 1, 99)]
)
def test_samples_depend_on_the_generator_alone(distribution: Distribution) -> None:
    """The same generator state gives the same bytes; no sample asks for no randomness."""
    first, second = (sample_tokens(distribution, _rng(), 1000) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert sample_tokens(distribution, _rng(), 0).tolist() == []


def test_lengths_below_the_least_become_the_least() -> None:
    """A request has at least one token, whatever rounding says; some texts may be empty."""
    assert sample_tokens(Fixed(0), _rng(), 2).tolist() == [1, 1]
    assert sample_tokens(Fixed(0), _rng(), 2, least=0).tolist() == [0, 0]


def test_durations_are_nanoseconds_of_seconds() -> None:
    """Durations are continuous and carry no rounding to whole seconds."""
    assert sample_ns(Fixed(2.5), _rng(), 2).tolist() == [2_500_000_000] * 2
    durations = sample_ns(Uniform(1.0, 3.0), _rng(), N)
    assert durations.dtype == np.int64
    assert durations.min() >= 1_000_000_000
    assert durations.max() <= 3_000_000_000
    assert durations.mean() == pytest.approx(2e9, abs=5 * 2e9 / math.sqrt(12 * N))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fixed(-1), "value must be a finite number at least 0"),
        (lambda: Fixed(math.nan), "value must be a finite number"),
        (lambda: UniformWhole(5, 4), "max must be a number of at least min=5, got 4"),
        (lambda: Uniform(0, math.inf), "max must be"),
        (lambda: Lognormal(0, 1), "mean must be a finite number above 0"),
        (lambda: Lognormal(1, -1), "std_dev must be"),
        (lambda: Lognormal(1, 1, min=5, max=2), "max must be"),
        (lambda: Zipf(-0.1, 1, 5), "alpha must be"),
        (lambda: Zipf(1, 0, 5), "min must be at least 1"),
        (lambda: Zipf(1, 1, 10**9), "max - min must be below"),
    ],
)
def test_impossible_parameters_are_refused(make: object, message: str) -> None:
    """A distribution that cannot be is an error when it is made."""
    with pytest.raises(ValueError, match=message):
        make()


def test_samples_beyond_the_columns_are_refused() -> None:
    """Lengths and durations that would overflow are errors, not wrapped numbers."""
    assert sample_tokens(Fixed(MAX_TOKENS), _rng(), 1)[0] == MAX_TOKENS
    with pytest.raises(ValueError, match="drew a length of"):
        sample_tokens(Fixed(MAX_TOKENS + 1), _rng(), 1)
    with pytest.raises(ValueError, match="drew a duration of"):
        sample_ns(Fixed(1e10), _rng(), 1)
