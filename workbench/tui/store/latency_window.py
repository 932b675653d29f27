"""Latencies of the last requests and steps up to the cursor: exact, from every single sample.

ITL counts gaps, not tokens: in a decode step every request that also decoded in the one before has
the same gap, so a step gives one value with a weight. Where a stay in the batch began, the gap goes
back to the prefill; it is known once the stay has ended, as the record tells of it only then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.core.enums import FinishReason, RequestEvent
from engine.core.events import Columns
from workbench.metrics import latency
from workbench.metrics.percentiles import WeightedSamples
from workbench.tui.store.replica_log import ReplicaLog
from workbench.tui.store.run_store import RunStore

Int64 = NDArray[np.int64]

PERCENTS: Final = (50.0, 90.0, 99.0, 100.0)
REQUESTS: Final = 200  # that a window goes back
STEPS: Final = 512
_BEFORE: Final = 64  # steps before the window among which the last decode before it is looked for
_SCANNED: Final = 1 << 16  # rows of lifecycle at most


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """One latency over a window.

    Attributes:
        name: TTFT, TPOT, ITL or E2E.
        percentiles_ms: at `PERCENTS`; None without samples.
        samples: how many.
        slo_ms: the limit that the scenario sets, if it sets one.
        kept_percent: share of the samples within it; None without limit or samples.
    """

    name: str
    percentiles_ms: tuple[float | None, ...]
    samples: int
    slo_ms: float | None
    kept_percent: float | None


def latency_rows(store: RunStore, replica: ReplicaLog, position: int) -> tuple[LatencyRow, ...]:
    """TTFT, TPOT, ITL and E2E around a step: of what had happened by its end."""
    t_ns = replica.steps.at(position)["end_ns"]
    slo = store.header.slo
    started = _requests(store, _last_ids(replica, RequestEvent.FIRST_TOKEN, t_ns))
    ended = _requests(store, _last_ids(replica, RequestEvent.FINISH, t_ns))
    well = np.isin(ended["finish_reason"], (FinishReason.STOP, FinishReason.LENGTH))
    ended = {name: column[well] for name, column in ended.items()}
    several = ended["output_tokens"] > 1
    tpot = latency.tpot_ms(ended)[several]
    return (
        _row("TTFT", WeightedSamples.of(latency.ttft_ms(started)), slo.ttft_ms),
        _row("TPOT", WeightedSamples.of(tpot), slo.tpot_ms),
        _row("ITL", itl_samples(store, replica, position - STEPS + 1, position), None),
        _row("E2E", WeightedSamples.of(latency.e2el_ms(ended)), slo.e2el_ms),
    )


def itl_samples(store: RunStore, replica: ReplicaLog, first: int, last: int) -> WeightedSamples:
    """All gaps that ended with a step at a position from `first` to `last`, in ms."""
    steps = replica.steps
    first = max(first, steps.first)
    part = slice(max(first - _BEFORE - steps.first, 0), last + 1 - steps.first)
    iteration = steps.column("decode_iteration")[part].astype(np.int64)
    end_ns = steps.column("end_ns")[part].astype(np.int64)
    batch = steps.column("decode_requests")[part].astype(np.int64)
    decoding = np.flatnonzero(iteration >= 0)
    inside = decoding >= first - steps.first - part.start
    spans = {name: replica.spans[name].astype(np.int64) for name in replica.spans.names()}
    window = (int(end_ns[first - steps.first - part.start - 1]) if first > steps.first else -1,
              int(end_ns[-1]))  # fmt: skip
    pauses = _pauses(store, replica, spans, *window)
    if not len(decoding):
        return WeightedSamples.of(pauses / latency.NS_PER_MS)
    iteration, ends = iteration[decoding], end_ns[decoding]
    inner = _inner_weights(spans, iteration, batch[decoding])
    opening = _opening_gaps(spans, iteration, ends, inside)
    single = np.concatenate((opening, pauses))
    return WeightedSamples.of(
        np.concatenate((np.diff(ends)[inside[1:]], single)) / latency.NS_PER_MS,
        np.concatenate((inner[1:][inside[1:]], np.ones(len(single), np.int64))),
    )


def _pauses(
    store: RunStore, replica: ReplicaLog, spans: Columns, after_ns: int, until_ns: int
) -> Int64:
    """Gaps over retractions: from the last token of a stay to the next token of the request."""
    book = store.requests
    ids = np.flatnonzero(
        (book.column("retractions") > 0) & (book.column("replica") == replica.number)
    )
    mine = np.isin(spans["request_id"], ids) & (spans["token_ns"] >= 0)
    order = np.flatnonzero(mine)[np.lexsort((spans["token_ns"][mine], spans["request_id"][mine]))]
    of = {name: column[order] for name, column in spans.items()}
    iterations = np.maximum.accumulate(replica.steps.column("decode_iteration"))
    at = np.searchsorted(iterations, of["first_iteration"] + of["committed"] - 1)
    at = np.minimum(at, max(len(iterations) - 1, 0))
    ended = replica.steps.column("end_ns")[at] if len(iterations) else of["token_ns"]
    last_ns = np.where(of["committed"] > 0, ended, of["token_ns"])
    again = np.flatnonzero(np.diff(of["request_id"]) == 0) + 1
    finished = ids[book.column("finish_ns")[ids] >= 0]
    rows: Columns = {
        name: book.column(name)[finished].astype(np.int64)
        for name in ("request_id", "output_tokens", "finish_ns")
    }
    lone, before = latency.lone_last_tokens(rows, of, last_ns)
    lone &= before >= 0
    came = np.concatenate((of["token_ns"][again], rows["finish_ns"][lone]))
    left = np.concatenate((last_ns[again - 1], before[lone]))
    return np.asarray((came - left)[(came > after_ns) & (came <= until_ns)], np.int64)


def _inner_weights(spans: Columns, iteration: Int64, batch: Int64) -> Int64:
    """How many requests got a token from each iteration and from the one before it."""
    begin = spans["first_iteration"]
    low, high = int(iteration[0]), int(iteration[-1])
    near = (begin + spans["scheduled"] > low) & (begin <= high) & (spans["token_ns"] >= 0)
    begin = begin[near]
    ended = _cover(begin, begin + spans["scheduled"][near], low, high)
    kept = _cover(begin + 1, begin + spans["committed"][near], low, high)
    still_open = np.maximum(batch - ended[iteration - low], 0)
    before = np.concatenate(([0], still_open[:-1]))
    return np.asarray(kept[iteration - low] + np.minimum(before, still_open), np.int64)


def _opening_gaps(
    spans: Columns, iteration: Int64, end_ns: Int64, inside: NDArray[np.bool_]
) -> Int64:
    """Gaps from the token of a prefill to the first of a stay, where that is in `iteration`."""
    chosen, ends = iteration[inside], end_ns[inside]
    if not len(chosen):
        return np.empty(0, np.int64)
    at = np.searchsorted(chosen, spans["first_iteration"])
    here = np.minimum(at, len(chosen) - 1)
    found = (chosen[here] == spans["first_iteration"]) & (spans["committed"] > 0)
    found &= spans["token_ns"] >= 0
    gaps: Int64 = ends[here[found]] - spans["token_ns"][found]
    return gaps


def _cover(begin: Int64, end: Int64, low: int, high: int) -> Int64:
    """How many of the ranges [begin, end) hold each of `low` to `high`; ranges may be empty."""
    size = high - low + 1
    begin, end = np.clip(begin - low, 0, size), np.clip(end - low, 0, size)
    opened = np.bincount(np.minimum(begin, end), minlength=size + 1)
    closed = np.bincount(end, minlength=size + 1)
    return np.cumsum(opened - closed)[:size]


def _last_ids(replica: ReplicaLog, event: RequestEvent, t_ns: int) -> Int64:
    """Requests of the last events of a kind up to a time, oldest first."""
    end = int(np.searchsorted(replica.lifecycle["t_ns"], t_ns, side="right"))
    start = max(end - _SCANNED, 0)
    rows = np.flatnonzero(replica.lifecycle["event"][start:end] == event)[-REQUESTS:]
    return replica.lifecycle["request_id"][start + rows].astype(np.int64)


def _requests(store: RunStore, ids: Int64) -> Columns:
    names = ("arrival_ns", "first_token_ns", "finish_ns", "output_tokens", "finish_reason")
    return {name: store.requests.column(name)[ids] for name in names}


def _row(name: str, samples: WeightedSamples, slo_ms: float | None) -> LatencyRow:
    kept = None
    if slo_ms is not None and samples.count:
        within = int(np.searchsorted(samples.values, slo_ms, side="right"))
        kept = 100.0 * float(samples.ranks[within - 1] if within else 0) / samples.count
    return LatencyRow(name, tuple(samples.percentiles(PERCENTS)), samples.count, slo_ms, kept)
