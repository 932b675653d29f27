"""How long things are: distributions of token counts and of durations.

Each distribution draws float64 samples; `sample_tokens` rounds them to int32 token counts and
`sample_ns` to int64 nanoseconds. Everything is vectorised and depends on nothing but the generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine.core.workload import Int32, Int64

Float64 = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

MAX_TOKENS = 2**30  # a prompt and an output of this length still add up within int32
MAX_NS = 2**62  # some 146 years, with room to add two of them
_MAX_ZIPF_RANKS = 10_000_000  # one float64 of a table each


class Distribution(Protocol):
    """Something that positive numbers can be drawn from."""

    def draw(self, rng: np.random.Generator, n: int, /) -> Float64:
        """float64[n] samples, none negative."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always `value`. Uses no randomness."""

    value: float

    def __post_init__(self) -> None:
        _check_finite("value", self.value, 0)

    def draw(self, _rng: np.random.Generator, n: int, /) -> Float64:
        return np.full(n, float(self.value))


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every real number in [min, max) equally likely: for durations."""

    min: float
    max: float

    def __post_init__(self) -> None:
        _check_range(self.min, self.max)

    def draw(self, rng: np.random.Generator, n: int, /) -> Float64:
        return rng.uniform(self.min, self.max, n)


@dataclass(frozen=True, slots=True)
class UniformWhole:
    """Every whole number in [min, max] equally likely: for token counts."""

    min: int
    max: int

    def __post_init__(self) -> None:
        _check_range(self.min, self.max)

    def draw(self, rng: np.random.Generator, n: int, /) -> Float64:
        return rng.integers(self.min, self.max, n, endpoint=True).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Lognormal, then clipped to [min, max].

    `mean` and `std_dev` are those of the lognormal variable itself (not of its logarithm) before
    clipping: sigma^2 = ln(1 + (std_dev / mean)^2) and mu = ln(mean) - sigma^2 / 2. Clipping moves
    the mean of what is drawn towards the inside of [min, max].
    """

    mean: float
    std_dev: float
    min: float = 0.0
    max: float = math.inf

    def __post_init__(self) -> None:
        _check_finite("mean", self.mean, 0, exclusive=True)
        _check_finite("std_dev", self.std_dev, 0)
        _check_range(self.min, self.max, finite=False)

    def draw(self, rng: np.random.Generator, n: int, /) -> Float64:
        sigma_squared = math.log1p((self.std_dev / self.mean) ** 2)
        mu = math.log(self.mean) - sigma_squared / 2
        samples = rng.lognormal(mu, math.sqrt(sigma_squared), n)
        return np.clip(samples, self.min, self.max)


@dataclass(frozen=True, slots=True)
class Recorded:
    """Each of `values`, which were measured, as often as it is in there."""

    values: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("there must be at least one recorded value")
        for value in self.values:
            _check_finite("a recorded value", value, 0)

    def draw(self, rng: np.random.Generator, n: int, /) -> Float64:
        return rng.choice(np.asarray(self.values, np.float64), n)


@dataclass(frozen=True, slots=True)
class Zipf:
    """Whole numbers k in [min, max] with probability proportional to k ** -alpha."""

    alpha: float
    min: int
    max: int

    def __post_init__(self) -> None:
        _check_finite("alpha", self.alpha, 0)
        _check_range(self.min, self.max)
        if self.min < 1:
            raise ValueError(f"min must be at least 1 for a zipf distribution, got {self.min}")
        if self.max - self.min >= _MAX_ZIPF_RANKS:
            raise ValueError(
                f"max - min must be below {_MAX_ZIPF_RANKS} for a zipf distribution, "
                f"got {self.max - self.min}"
            )

    def draw(self, rng: np.random.Generator, n: int, /) -> Float64:
        values = np.arange(self.min, self.max + 1, dtype=np.float64)
        cumulative = np.cumsum((values / self.min) ** -self.alpha)
        ranks = np.searchsorted(cumulative, rng.random(n) * cumulative[-1], "right")
        picked: Float64 = values[np.minimum(ranks, len(values) - 1)]
        return picked


def sample_tokens(
    distribution: Distribution, rng: np.random.Generator, n: int, *, least: int = 1
) -> Int32:
    """int32[n] token counts, rounded half to even; anything below `least` becomes `least`.

    Raises:
        ValueError: a sample exceeds MAX_TOKENS, so int32 sums could overflow.
    """
    samples = distribution.draw(rng, n)
    if n and samples.max() > MAX_TOKENS:
        raise ValueError(
            f"{distribution} drew a length of {samples.max():.4g} tokens; at most {MAX_TOKENS} "
            "are supported, so give it a lower max"
        )
    return np.maximum(np.rint(samples), least).astype(np.int32)


def sample_ns(distribution: Distribution, rng: np.random.Generator, n: int) -> Int64:
    """int64[n] durations in ns from a distribution in seconds.

    Raises:
        ValueError: a sample exceeds MAX_NS.
    """
    samples = distribution.draw(rng, n) * 1e9
    if n and samples.max() > MAX_NS:
        raise ValueError(
            f"{distribution} drew a duration of {samples.max() / 1e9:.4g} s; at most "
            f"{MAX_NS / 1e9:.4g} s are supported, so give it a lower max"
        )
    return np.rint(samples).astype(np.int64)


def _check_finite(name: str, value: float, least: float, *, exclusive: bool = False) -> None:
    if not math.isfinite(value) or value < least or (exclusive and value == least):
        relation = "above" if exclusive else "at least"
        raise ValueError(f"{name} must be a finite number {relation} {least}, got {value}")


def _check_range(low: float, high: float, *, finite: bool = True) -> None:
    _check_finite("min", low, 0)
    if math.isnan(high) or (finite and math.isinf(high)) or high < low:
        raise ValueError(f"max must be a number of at least min={low}, got {high}")
