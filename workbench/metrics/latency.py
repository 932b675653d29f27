"""Latencies of requests, by the formulas of `vllm bench serve`, in ms.

Every function takes the `requests` table (see `engine.core.events`) cut down to requests that ended
well, or what the docstring says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.core.enums import FinishReason
from engine.core.events import Columns
from workbench.metrics.percentiles import WeightedSamples

Bool = NDArray[np.bool_]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

NS_PER_MS = 1e6
NS_PER_S = 1_000_000_000


class MetricsError(ValueError):
    """The tables contradict each other, so that a metric would be wrong."""


def successful(requests: Columns) -> Bool:
    """bool[n], requests that ended with STOP or LENGTH; only these have latencies."""
    return np.isin(requests["finish_reason"], (FinishReason.STOP, FinishReason.LENGTH))


def ttft_ms(requests: Columns) -> Float64:
    """Time to first token: first token - sending, float64[n]."""
    return _ms(requests["first_token_ns"] - requests["arrival_ns"])


def e2el_ms(requests: Columns) -> Float64:
    """End-to-end latency: last token - sending, float64[n]."""
    return _ms(requests["finish_ns"] - requests["arrival_ns"])


def tpot_ms(requests: Columns) -> Float64:
    """Time per output token without the first, (E2EL - TTFT) / (output tokens - 1), float64[n].

    0 where there is only one token, which is what goodput compares; such requests have no TPOT and
    do not enter its statistics.
    """
    gaps = requests["output_tokens"].astype(np.int64) - 1
    decode_ms = _ms(requests["finish_ns"] - requests["first_token_ns"])
    return np.divide(decode_ms, gaps, out=np.zeros(len(gaps)), where=gaps > 0)


def client_wait_ms(requests: Columns) -> Float64:
    """How long the client's own concurrency cap held a request back before sending, float64[n]."""
    return _ms(requests["client_wait_ns"])


def itl(requests: Columns, spans: Columns, iterations: IterationTimes) -> WeightedSamples:
    """Inter-token latency: every gap between two tokens of a request, pooled, in ms.

    With E[i] the commit time of decode iteration i, a span gives E[first] - token_ns and then
    E[i] - E[i - 1] for its further committed iterations. Between two spans of a request (it was
    retracted) lies one gap, from its last token to the token that opens the next span; likewise if
    the token of its last prefill ended it. Gaps are counted per iteration, never listed per token.
    """
    spans = spans_of(spans, requests["request_id"])
    first, last = iterations.rows_of(spans)
    decoded = spans["committed"] > 0
    opening = iterations.end_ns[first[decoded]] - spans["token_ns"][decoded]
    inner_gap, inner_count = iterations.inner_gaps(first[decoded], last[decoded])
    pause = _pauses(requests, spans, iterations.last_token_ns(spans, last))
    single = np.concatenate([opening, pause])
    return WeightedSamples.of(
        np.concatenate([inner_gap, single]) / NS_PER_MS,
        np.concatenate([inner_count, np.ones(len(single), np.int64)]),
    )


def spans_of(spans: Columns, request_ids: NDArray[np.signedinteger[Any]]) -> Columns:
    """The decode spans of these requests, ordered by request and time.

    A stay that ended before the token that opened it came back (`token_ns` -1) gave no token and is
    left out.
    """
    kept = np.isin(spans["request_id"], request_ids) & (spans["token_ns"] >= 0)
    columns = {name: column[kept] for name, column in spans.items()}
    order = np.lexsort((columns["token_ns"], columns["request_id"]))
    return {name: column[order] for name, column in columns.items()}


@dataclass(frozen=True, slots=True)
class IterationTimes:
    """When each decode iteration was committed; one row per iteration, by replica.

    An iteration whose step failed has no row in the `steps` table, and no token came of it.

    Attributes:
        end_ns: int64[m], E[i]; that of the iteration before, where a step failed.
        offset: int64[replicas], row of each replica's iteration 0 (negative if the record starts
            later, so that offset + iteration is always the row).
        count: int64[replicas + 1], rows before each replica's first.
        failed: int64[m + 1], failed iterations before each row.
    """

    end_ns: Int64
    offset: Int64
    count: Int64
    failed: Int64

    @classmethod
    def of(cls, steps: Columns) -> IterationTimes:
        """From the `steps` table.

        Raises:
            MetricsError: an iteration of a replica appears twice.
        """
        decoding = steps["decode_iteration"] >= 0
        replica = steps["replica"][decoding].astype(np.int64)
        iteration = steps["decode_iteration"][decoding].astype(np.int64)
        order = np.lexsort((iteration, replica))
        replica, iteration = replica[order], iteration[order]
        if ((np.diff(replica) == 0) & (np.diff(iteration) == 0)).any():
            raise MetricsError("a decode iteration appears twice in the steps table")
        bounds = np.searchsorted(replica, np.arange(replica.max(initial=-1) + 2))
        seen = bounds[:-1] < bounds[1:]
        first, last = bounds[:-1][seen], bounds[1:][seen] - 1
        sizes = np.zeros(len(seen), np.int64)
        sizes[seen] = iteration[last] - iteration[first] + 1
        count = np.append(0, np.cumsum(sizes))
        offset = count[:-1].copy()
        offset[seen] -= iteration[first]
        row = offset[replica] + iteration
        source = np.full(
            count[-1], -1, np.int64
        )  # the recorded step of each row, or the one before
        source[row] = np.arange(len(row))
        failed = np.append(0, np.cumsum(source < 0))
        end_ns = steps["end_ns"][decoding][order].astype(np.int64)
        return cls(end_ns[np.maximum.accumulate(source)], offset, count, failed)

    def rows_of(self, spans: Columns) -> tuple[Int64, Int64]:
        """Rows of each span's first and last committed iteration (any value if none was).

        Raises:
            MetricsError: a span has tokens of an iteration that no step has.
        """
        decoded = spans["committed"] > 0
        replica = spans["replica"][decoded].astype(np.int64)
        if replica.size and replica.max() >= len(self.offset):
            raise MetricsError("decode_spans name a replica that decoded no step")
        begin = self.offset[replica] + spans["first_iteration"][decoded]
        end = begin + spans["committed"][decoded]
        outside = (begin < self.count[replica]).any() or (end > self.count[replica + 1]).any()
        if outside or (self.failed[end] > self.failed[begin]).any():
            raise MetricsError("decode_spans name decode iterations that the steps table lacks")
        first, last = np.zeros(len(decoded), np.int64), np.zeros(len(decoded), np.int64)
        first[decoded], last[decoded] = begin, end - 1
        return first, last

    def inner_gaps(self, first: Int64, last: Int64) -> tuple[Int64, Int64]:
        """The gap before each iteration, and how many spans held a token on both sides of it."""
        gap = np.diff(self.end_ns, prepend=0)
        return gap, _cover(first + 1, last + 1, len(gap))

    def tokens(self, first: Int64, last: Int64) -> Int64:
        """int64[m], tokens that spans [first, last] got from each iteration."""
        return _cover(first, last + 1, len(self.end_ns))

    def last_token_ns(self, spans: Columns, last: Int64) -> Int64:
        """When each span gave its last token: that of its prefill, if it decoded none."""
        token_ns = spans["token_ns"].astype(np.int64)
        decoded = spans["committed"] > 0
        token_ns[decoded] = self.end_ns[last[decoded]]
        return token_ns


def lone_last_tokens(requests: Columns, spans: Columns, last_token_ns: Int64) -> tuple[Bool, Int64]:
    """Requests whose last token came of a prefill and so opened no span.

    Takes spans ordered by request. Returns which requests those are (bool[n]) and, for each
    request, when its last token before that was (int64[n], -1 without a span).
    """
    ids = requests["request_id"]
    end = np.searchsorted(spans["request_id"], ids, side="right")
    begin = np.searchsorted(spans["request_id"], ids, side="left")
    running = np.concatenate([[0], np.cumsum(spans["committed"].astype(np.int64) + 1)])
    known_tokens = running[end] - running[begin]
    has_span = end > begin
    before = np.full(len(ids), -1, np.int64)
    before[has_span] = last_token_ns[end[has_span] - 1]
    lone = (known_tokens < requests["output_tokens"]) & (before < requests["finish_ns"])
    return lone, before


def _pauses(requests: Columns, spans: Columns, last_token_ns: Int64) -> Int64:
    """Gaps of a request between spans, and between its last span and a lone last token."""
    ids = spans["request_id"]
    again = np.flatnonzero(ids[1:] == ids[:-1]) + 1
    between = spans["token_ns"][again] - last_token_ns[again - 1]
    lone, before = lone_last_tokens(requests, spans, last_token_ns)
    lone &= before >= 0
    return np.concatenate([between, requests["finish_ns"][lone] - before[lone]]).astype(np.int64)


def _cover(begin: Int64, end: Int64, size: int) -> Int64:
    """How many of the ranges [begin, end) hold each of 0..size-1; ranges may be empty."""
    opened = np.bincount(begin, minlength=size + 1)
    closed = np.bincount(end, minlength=size + 1)
    return np.cumsum(opened - closed)[:size]


def _ms(duration_ns: NDArray[np.signedinteger[Any]]) -> Float64:
    return np.asarray(duration_ns, np.float64) / NS_PER_MS
