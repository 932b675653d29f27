"""Requests before they are sent: when they arrive, how long they are, what they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.core.workload import NEVER, Workload
from workbench.metrics.latency import NS_PER_S

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_BINS: Final = 96  # of a picture; a pane takes as many as it has room for


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the prompts or the outputs of a workload are, in tokens.

    Attributes:
        counts: int64[bins], requests by length, on a log scale from `least` to `most`.
        p50, p99, mean, least, most: tokens.
    """

    counts: Int64
    p50: float
    p99: float
    mean: float
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class WorkloadPreview:
    """A workload in figures and small pictures.

    Attributes:
        requests: how many.
        follow_ups: how many of them wait for an earlier answer, so that their arrival is not known.
        span_s: from the first arrival to the last; of those that are known.
        rates: float64[bins], arrivals per second over the span; empty if all come at once.
        rate_p50, rate_p99: of the bins.
        prompt, output: lengths.
        shared_percent: prompt tokens that repeat an earlier text.
    """

    requests: int
    follow_ups: int
    span_s: float
    rates: Float64
    rate_p50: float
    rate_p99: float
    prompt: Lengths
    output: Lengths
    shared_percent: float


def preview(workload: Workload) -> WorkloadPreview:
    """What a workload looks like."""
    from workbench.running.estimate import shared_prefix_share

    roots = workload.parent == NEVER
    arrivals = workload.arrival_ns[roots] / NS_PER_S
    span = float(arrivals.max() - arrivals.min()) if len(arrivals) else 0.0
    rates = np.empty(0)
    if span > 0:
        bins = min(_BINS, max(8, len(arrivals) // 8))
        rates = np.histogram(arrivals, bins)[0] / (span / bins)
    output = np.minimum(workload.output_tokens, workload.max_tokens)
    return WorkloadPreview(
        requests=len(workload),
        follow_ups=int((~roots).sum()),
        span_s=span,
        rates=rates,
        rate_p50=float(np.median(rates)) if len(rates) else 0.0,
        rate_p99=float(np.percentile(rates, 99)) if len(rates) else 0.0,
        prompt=_lengths(workload.prompt_tokens),
        output=_lengths(output),
        shared_percent=100 * shared_prefix_share(workload),
    )


def _lengths(tokens: NDArray[np.int32]) -> Lengths:
    least, most = int(tokens.min()), int(tokens.max())
    edges = np.geomspace(least, most + 1, _BINS + 1)
    return Lengths(
        counts=np.histogram(tokens, edges)[0].astype(np.int64),
        p50=float(np.median(tokens)),
        p99=float(np.percentile(tokens, 99)),
        mean=float(tokens.mean()),
        least=least,
        most=most,
    )


def rebinned(values: NDArray[np.generic], bins: int) -> Float64:
    """Means of `values` over `bins` equal parts of it. float64[bins]; empty stays empty."""
    if not len(values) or bins < 1:
        return np.empty(0)
    edges = np.linspace(0, len(values), bins + 1)
    total = np.concatenate(([0.0], np.cumsum(values.astype(np.float64))))
    at = np.interp(edges, np.arange(len(values) + 1), total)
    return np.diff(at) / np.diff(edges)
