"""What a comparison of two runs says: plain data, for text, JSON and screens."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.analysis.divergence import Divergence
from workbench.analysis.durations import DurationComparison
from workbench.analysis.header_diff import FactDifference
from workbench.analysis.metric_deltas import MetricDelta


@dataclass(frozen=True, slots=True)
class Comparison:
    """Run B against run A.

    Attributes:
        name_a, name_b: what to call them: directory, name, kind and status.
        header: facts that differ, those that make the comparison unfair first.
        paired: both were asked the same requests, so noise is judged request by request.
        metrics: all metrics with their differences.
        divergence: the first decision that differs.
        durations: how much of the latency difference comes from durations, how much from decisions.
        fail_over_percent: what the caller tolerates, if it asked.
        regressed: metrics that are worse in B by more than that, beyond noise.
    """

    name_a: str
    name_b: str
    header: tuple[FactDifference, ...]
    paired: bool
    metrics: tuple[MetricDelta, ...]
    divergence: Divergence
    durations: DurationComparison
    fail_over_percent: float | None
    regressed: tuple[str, ...]
