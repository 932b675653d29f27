"""The samples behind the metrics of one run, with the place in the run that each came from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.core.events import Columns
from workbench.analysis.source import Float64, Int64, RunTables, int64
from workbench.metrics import latency, throughput
from workbench.metrics.latency import IterationTimes


@dataclass(frozen=True, slots=True)
class Gaps:
    """Inter-token gaps of completed requests: ms, how often each occurs, when it ended (ns)."""

    ms: Float64
    weights: Int64
    end_ns: Int64


@dataclass(frozen=True, slots=True)
class RunSamples:
    """What a run measured, requests in order of arrival.

    Attributes:
        measured: rows of the `requests` table inside the measurement.
        completed: those of them that ended well.
        start_ns, end_ns: the time that throughputs refer to.
        gaps: inter-token gaps; empty if steps were not recorded.
        good: bool[completed] as 0 or 1, meets the objective; empty without one.
    """

    measured: Columns
    completed: Columns
    start_ns: int
    end_ns: int
    gaps: Gaps
    good: Int64

    @property
    def duration_s(self) -> float:
        """Seconds that throughputs are divided by."""
        return (self.end_ns - self.start_ns) / latency.NS_PER_S


def samples_of(run: RunTables) -> RunSamples:
    """Samples of `run`, by the definitions of `workbench.metrics.run_metrics`."""
    requests, steps = run.table("requests"), run.table("steps")
    run_end = int(max(steps["end_ns"].max(initial=0), requests["finish_ns"].max(initial=0)))
    subject = throughput.measured(requests, run.header.measure, run_end)
    measured = _by_arrival(subject.requests)
    completed = throughput.select(measured, latency.successful(measured))
    good = throughput.good(completed, run.header.slo).astype(np.int64)
    return RunSamples(
        measured=measured,
        completed=completed,
        start_ns=subject.start_ns,
        end_ns=subject.end_ns,
        gaps=_gaps(completed, run.table("decode_spans"), steps),
        good=good if run.header.slo.given() else good[:0],
    )


def _by_arrival(requests: Columns) -> Columns:
    order = np.lexsort((requests["request_id"], requests["arrival_ns"]))
    return {name: column[order] for name, column in requests.items()}


def _gaps(completed: Columns, spans: Columns, steps: Columns) -> Gaps:
    """The gaps that `workbench.metrics.latency.itl` pools, with their times."""
    none = np.empty(0, np.int64)
    if not len(steps["step"]):
        return Gaps(none.astype(np.float64), none, none)
    iterations = IterationTimes.of(steps)
    spans = latency.spans_of(spans, completed["request_id"])
    first, last = iterations.rows_of(spans)
    decoded = spans["committed"] > 0
    inner, count = iterations.inner_gaps(first[decoded], last[decoded])
    opened = iterations.end_ns[first[decoded]]
    opening = opened - int64(spans, "token_ns")[decoded]
    pause, resumed = _pauses(completed, spans, iterations.last_token_ns(spans, last))
    kept = count > 0
    return Gaps(
        np.concatenate((inner[kept], opening, pause)) / latency.NS_PER_MS,
        np.concatenate((count[kept], np.ones(len(opening) + len(pause), np.int64))),
        np.concatenate((iterations.end_ns[kept], opened, resumed)),
    )


def _pauses(completed: Columns, spans: Columns, last_token_ns: Int64) -> tuple[Int64, Int64]:
    """Gaps between the spans of a request and before a lone last token, and when they ended."""
    ids = spans["request_id"]
    again = np.flatnonzero(ids[1:] == ids[:-1]) + 1
    resumed = int64(spans, "token_ns")[again]
    lone, before = latency.lone_last_tokens(completed, spans, last_token_ns)
    lone &= before >= 0
    ended = int64(completed, "finish_ns")[lone]
    pause = np.concatenate((resumed - last_token_ns[again - 1], ended - before[lone]))
    return pause, np.concatenate((resumed, ended))
