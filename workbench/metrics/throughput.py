"""What was served per second, by the formulas of `vllm bench serve`, and which requests count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.core.events import Columns
from workbench.metrics.latency import (
    NS_PER_S,
    IterationTimes,
    e2el_ms,
    lone_last_tokens,
    spans_of,
    tpot_ms,
    ttft_ms,
)
from workbench.record.header import MeasureFacts, SloFacts

Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Measured:
    """The requests that count, and the time in which they were served.

    Attributes:
        requests: rows of the `requests` table.
        start_ns: their first arrival.
        end_ns: when the last of them ended, or the end of the run if one never did.
    """

    requests: Columns
    start_ns: int
    end_ns: int

    @property
    def duration_s(self) -> float:
        """Seconds from `start_ns` to `end_ns`; what every throughput is divided by."""
        return (self.end_ns - self.start_ns) / NS_PER_S


def measured(requests: Columns, measure: MeasureFacts, run_end_ns: int) -> Measured:
    """Requests that were sent, less the warm-up, and that arrived inside the window."""
    kept = select(requests, in_measurement(requests, measure))
    if not len(kept["request_id"]):
        return Measured(kept, 0, 0)
    finish = kept["finish_ns"]
    end = run_end_ns if (finish < 0).any() else int(finish.max())
    return Measured(kept, int(kept["arrival_ns"].min()), end)


def in_measurement(requests: Columns, measure: MeasureFacts) -> Bool:
    """bool[n]: sent, not among the first `warmup_requests` by arrival, inside the window."""
    arrival = requests["arrival_ns"].astype(np.int64)
    sent = arrival >= 0
    order = np.lexsort((requests["request_id"], arrival))
    order = order[sent[order]]
    kept = np.zeros(len(arrival), np.bool_)
    kept[order[measure.warmup_requests :]] = True
    if measure.window_start_s is not None:
        kept &= arrival >= measure.window_start_s * NS_PER_S
    if measure.window_end_s is not None:
        kept &= arrival < measure.window_end_s * NS_PER_S
    return kept


def select(columns: Columns, kept: Bool) -> Columns:
    """The rows of a table where `kept` is true."""
    return {name: column[kept] for name, column in columns.items()}


def good(completed: Columns, slo: SloFacts) -> Bool:
    """bool[n]: requests that meet every limit that the objective sets.

    Request goodput is the number of good requests over the duration. A request of one output token
    counts with a TPOT of 0.
    """
    met = np.ones(len(completed["request_id"]), np.bool_)
    for limit, value in (
        (slo.ttft_ms, ttft_ms(completed)),
        (slo.tpot_ms, tpot_ms(completed)),
        (slo.e2el_ms, e2el_ms(completed)),
    ):
        if limit is not None:
            met &= value <= limit
    return met


def peak_concurrent_requests(completed: Columns) -> int:
    """The most requests that touched one and the same second, counted from the first arrival.

    This is vLLM's `max_concurrent_requests`: short requests that follow each other within a second
    all count, so that it is an upper bound of the requests in flight at one moment.
    """
    if not len(completed["request_id"]):
        return 0
    start = int(completed["arrival_ns"].min())
    first = _second(completed["arrival_ns"], start)
    last = _second(completed["finish_ns"], start)
    active = np.bincount(first, minlength=last.max() + 2) - np.bincount(
        last + 1, minlength=last.max() + 2
    )
    return int(np.cumsum(active).max())


def peak_output_throughput(completed: Columns, spans: Columns, iterations: IterationTimes) -> int:
    """The most output tokens of any whole second, counted from the first arrival (tok/s)."""
    if not len(completed["request_id"]):
        return 0
    start = int(completed["arrival_ns"].min())
    spans = spans_of(spans, completed["request_id"])
    first, last = iterations.rows_of(spans)
    decoded = spans["committed"] > 0
    tokens = iterations.tokens(first[decoded], last[decoded])
    lone, _ = lone_last_tokens(completed, spans, iterations.last_token_ns(spans, last))
    single = np.concatenate([spans["token_ns"], completed["finish_ns"][lone]]).astype(np.int64)
    used = tokens > 0
    second = np.concatenate([_second(iterations.end_ns[used], start), _second(single, start)])
    weight = np.concatenate([tokens[used], np.ones(len(single), np.int64)])
    return int(np.bincount(second, weights=weight).max())


def _second(time_ns: NDArray[np.signedinteger[Any]], start_ns: int) -> Int64:
    return (time_ns.astype(np.int64) - start_ns) // NS_PER_S
