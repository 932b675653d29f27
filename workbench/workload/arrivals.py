"""When requests arrive: arrival processes as int64 ns from the start of the run, non-decreasing.

Random processes start empty at time 0, so the first request comes after the first gap; the constant
process sends its first request at 0.
"""

from __future__ import annotations

import math

import numpy as np

from engine.core.workload import Int64
from workbench.workload.lengths import MAX_NS, Float64


def poisson_arrivals(rng: np.random.Generator, n: int, request_rate: float) -> Int64:
    """int64[n]: a Poisson process of `request_rate` requests per second."""
    _check_rate("request_rate", request_rate)
    return _to_ns(np.cumsum(rng.standard_exponential(n)) / request_rate)


def gamma_arrivals(
    rng: np.random.Generator, n: int, request_rate: float, burstiness: float
) -> Int64:
    """int64[n]: independent gamma gaps of mean 1 / `request_rate` seconds.

    `burstiness` is the gamma's shape, as in `vllm bench serve`: the gaps' coefficient of variation
    is 1 / sqrt(burstiness), so 1 is a Poisson process, below 1 is burstier, above 1 more regular.
    """
    _check_rate("request_rate", request_rate)
    _check_rate("burstiness", burstiness)
    return _to_ns(np.cumsum(rng.standard_gamma(burstiness, n)) / (request_rate * burstiness))


def constant_arrivals(n: int, request_rate: float) -> Int64:
    """int64[n]: request i at i / `request_rate` seconds."""
    _check_rate("request_rate", request_rate)
    return _to_ns(np.arange(n) / request_rate)


def all_at_once(n: int) -> Int64:
    """int64[n] zeros: also a closed loop's arrivals, where the driver caps the concurrency."""
    return np.zeros(n, np.int64)


def ramp_arrivals(rng: np.random.Generator, n: int, start_rate: float, end_rate: float) -> Int64:
    """int64[n]: Poisson arrivals whose rate goes linearly from `start_rate` to `end_rate`.

    The ramp lasts D = 2 n / (start_rate + end_rate) seconds, in which n requests are expected, and
    the process is the Poisson process of that rate given that exactly n arrive within D. Exact, by
    time change: uniform order statistics on [0, n] go through the inverse of the expected count
    Lambda(t) = start_rate t + (end_rate - start_rate) t^2 / (2 D) (Cinlar, Introduction to
    Stochastic Processes, 1975, sections 4.5 and 4.7).

    Args:
        rng: source of randomness.
        n: number of requests.
        start_rate: requests per second at time 0; at least 0.
        end_rate: requests per second at D; at least 0, and not 0 if `start_rate` is.
    """
    both = start_rate + end_rate
    _check_rate("start_rate + end_rate", both)
    if min(start_rate, end_rate) < 0:
        raise ValueError(f"rates must be at least 0, got {start_rate} and {end_rate}")
    if n == 0:
        return all_at_once(0)
    spacings = np.cumsum(rng.standard_exponential(n + 1))
    expected = spacings[:-1] * (n / spacings[-1])
    half_slope = (end_rate - start_rate) * both / (4 * n)
    # The smaller root of Lambda(t) = expected, in the form that neither cancels nor divides by 0.
    root = np.sqrt(np.maximum(start_rate**2 + 4 * half_slope * expected, 0.0))
    seconds = 2 * expected / np.maximum(start_rate + root, np.finfo(np.float64).tiny)
    return _to_ns(np.maximum.accumulate(seconds))


def scaled_arrivals(arrival_ns: Int64, time_scale: float) -> Int64:
    """int64[n]: a trace's own timestamps times `time_scale`; 0.5 doubles the rate."""
    _check_rate("time_scale", time_scale)
    if time_scale == 1.0:
        return arrival_ns
    return _check_ns(np.rint(arrival_ns * time_scale))


def _to_ns(seconds: Float64) -> Int64:
    return _check_ns(np.rint(seconds * 1e9))


def _check_ns(nanoseconds: Float64) -> Int64:
    if len(nanoseconds) and nanoseconds[-1] > MAX_NS:
        raise ValueError(
            f"the last request would arrive after {nanoseconds[-1] / 1e9:.4g} s; "
            f"at most {MAX_NS / 1e9:.4g} s are supported, so raise the rate or lower time_scale"
        )
    return nanoseconds.astype(np.int64)


def _check_rate(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
