"""How near a simulation has to be, and whether it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# Metric -> percent of error that is allowed, or the engine's own spread where that is larger.
GOALS: Final = {
    "mean_ttft_ms": 3.0, "p99_ttft_ms": 5.0, "mean_tpot_ms": 1.0, "p99_tpot_ms": 5.0,
    "mean_itl_ms": 1.0, "p99_itl_ms": 5.0, "mean_e2el_ms": 3.0, "p99_e2el_ms": 5.0,
    "output_throughput": 1.0,
}  # fmt: skip
# Percent of absolute errors of steps, or what their mean over the engine's runs misses them by.
STEP_GOALS: Final = {"median": 2.0, "p99": 5.0}
P99_REQUESTS: Final = 1000  # below so many, a 99th percentile is not judged
JUDGED_STEPS: Final = {"median": 20, "p99": 100}  # below so many, these are not judged


@dataclass(frozen=True, slots=True)
class Score:
    """A prediction beside the engine.

    Attributes:
        engine: mean of the engine's runs.
        predicted: by the simulator.
        error: signed, percent of the engine's mean; None where there is nothing to divide by.
        spread: half the range of the engine's runs, percent of their mean; None: one tells none.
        goal: percent that are allowed, the spread included; None: it is not judged.
        reached: whether the error is within; None: it is not judged.
    """

    engine: float | None
    predicted: float | None
    error: float | None
    spread: float | None
    goal: float | None = None
    reached: bool | None = None


def score(
    metric: str, runs: Sequence[float | None], predicted: float | None, requests: int
) -> Score:
    """Compare a prediction with the runs of the engine.

    Args:
        metric: one of `GOALS`.
        runs: what the engine's runs say.
        predicted: what the simulator says.
        requests: that ended; decides whether a 99th percentile is judged.
    """
    known = [value for value in runs if value is not None]
    mean = sum(known) / len(known) if known else None
    if mean is None or predicted is None:
        return Score(mean, predicted, None, None)
    spread = 0.0 if len(known) > 1 else None
    if mean == 0:
        nothing = predicted == 0
        return Score(mean, predicted, 0.0 if nothing else None, spread, GOALS[metric], nothing)
    error = 100 * (predicted - mean) / mean
    if spread is not None:
        spread = 50 * (max(known) - min(known)) / mean
    if metric.startswith("p99") and requests < P99_REQUESTS:
        return Score(mean, predicted, error, spread)
    goal = max(GOALS[metric], spread or 0.0)
    return Score(mean, predicted, error, spread, goal, abs(error) <= goal)
