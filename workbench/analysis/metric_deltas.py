"""Metrics of two runs side by side: how far apart, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from engine.core.events import Columns, Segment
from workbench.analysis.bootstrap import (
    DRAWS,
    Blocks,
    Interval,
    block_numbers,
    draw_blocks,
    interval_of,
)
from workbench.analysis.samples import RunSamples, samples_of
from workbench.analysis.source import Float64, Int64, RunTables, int64
from workbench.metrics import latency
from workbench.metrics.run_metrics import Summary, summarize

Verdict = Literal["better", "worse", "noise", "equal", "unjudged"]
Draws = tuple[Float64, Float64]  # a statistic of each draw of A and of B

HIGHER_IS_BETTER: Final = frozenset(
    {"request_throughput", "output_throughput", "total_token_throughput", "request_goodput"}
    | {"prefix_hit_rate_percent"}
)
# Worth seeing beside the others; neither direction is good as such.
CONTEXT: Final = ("gpu_busy_percent", "mean_decode_batch", "kv_used_mean_percent")


@dataclass(frozen=True, slots=True)
class MetricDelta:
    """One metric of both runs.

    Attributes:
        name: key of the summary, unit included.
        a, b: values; None where a run has none.
        delta_percent: (b - a) / a; None without both, or with a = 0.
        interval: 95 % interval of b - a; None where chance cannot be judged.
        verdict: of b against a. "equal": the very same value; "noise": the interval holds 0;
            "unjudged": no interval, or no good direction.
    """

    name: str
    a: float | None
    b: float | None
    delta_percent: float | None
    interval: Interval | None
    verdict: Verdict

    def regressed(self, fail_over_percent: float) -> bool:
        """Whether B is worse by more than that, beyond chance."""
        worse_by = np.inf if self.delta_percent is None else abs(self.delta_percent)
        return self.verdict == "worse" and worse_by > fail_over_percent


def metric_deltas(a: RunTables, b: RunTables, paired: bool) -> tuple[MetricDelta, ...]:
    """All metrics of both runs.

    Args:
        a: the run to compare with.
        b: the run to judge.
        paired: both were asked the same requests; requests then are compared one by one, and parts
            of the run with the same part of the other.
    """
    summary_a, summary_b = _summary(a), _summary(b)
    percents = sorted(set(a.header.measure.percentiles) & set(b.header.measure.percentiles))
    percents = [percent for percent in percents if percent != 50]
    left, right = samples_of(a), samples_of(b)
    intervals = {
        name: interval_of(draws[1] - draws[0])
        for family in (_latencies, _gaps, _rates, _requests)
        for name, draws in family(left, right, paired, percents)
    }
    names = [name for name in _names(percents) if name in intervals or name in CONTEXT]
    return tuple(
        _delta(name, summary_a[name], summary_b[name], intervals.get(name))
        for name in names
        if not (summary_a[name] is None and summary_b[name] is None)
    )


def _names(percents: Sequence[float]) -> Iterator[str]:
    for latency_name in ("ttft", "tpot", "itl", "e2el"):
        for statistic in ("mean", "median", *(f"p{percent:g}" for percent in percents)):
            yield f"{statistic}_{latency_name}_ms"
    yield from ("request_throughput", "output_throughput", "total_token_throughput")
    yield from ("request_goodput", "failed_percent", "prefix_hit_rate_percent", "retractions")
    yield from CONTEXT


def _summary(run: RunTables) -> Summary:
    tables: Segment = {name: run.table(name) for name in ("requests", "decode_spans", "steps")}
    summary = summarize(tables, run.header)
    sent = summary["completed"] + summary["failed"]
    summary["failed_percent"] = 100 * summary["failed"] / sent if sent else None
    return summary


def _delta(name: str, a: Any, b: Any, interval: Interval | None) -> MetricDelta:
    percent = 100 * (b - a) / abs(a) if a and b is not None else None
    verdict: Verdict = "unjudged"
    if a == b:
        verdict = "equal"
    elif interval is not None and a is not None and b is not None:
        verdict = _judge(name, b - a) if interval.excludes_zero else "noise"
    return MetricDelta(name, a, b, percent, interval, verdict)


def _judge(name: str, delta: float) -> Verdict:
    return "better" if (delta > 0) == (name in HIGHER_IS_BETTER) else "worse"


def _latencies(
    a: RunSamples, b: RunSamples, paired: bool, percents: Sequence[float]
) -> Iterator[tuple[str, Draws]]:
    """TTFT, TPOT and E2E: one sample per completed request."""
    rows_a, rows_b = _rows(a.completed, b.completed, paired)
    for name, formula in (
        ("ttft", latency.ttft_ms),
        ("tpot", latency.tpot_ms),
        ("e2el", latency.e2el_ms),
    ):
        kept_a, kept_b = rows_a, rows_b
        if name == "tpot":
            kept_a, kept_b = _with_gaps(a.completed, rows_a, b.completed, rows_b, paired)
        values = formula(a.completed)[kept_a], formula(b.completed)[kept_b]
        yield from _statistics(name, _in_blocks(values[0], values[1], paired), percents)


def _rows(a: Columns, b: Columns, paired: bool) -> tuple[Int64, Int64]:
    """Rows to compare: request by request if paired, else all."""
    if not paired:
        return np.arange(len(a["request_id"])), np.arange(len(b["request_id"]))
    _, rows_a, rows_b = np.intersect1d(a["request_id"], b["request_id"], return_indices=True)
    order = np.argsort(rows_a)
    return rows_a[order], rows_b[order]


def _with_gaps(
    a: Columns, rows_a: Int64, b: Columns, rows_b: Int64, paired: bool
) -> tuple[Int64, Int64]:
    """Those of the rows that have a TPOT (in both runs, if paired)."""
    has_a, has_b = a["output_tokens"][rows_a] > 1, b["output_tokens"][rows_b] > 1
    if paired:
        has_a = has_b = has_a & has_b
    return rows_a[has_a], rows_b[has_b]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Blocks of both runs and the draws of them."""

    a: Blocks
    b: Blocks
    draws_a: Int64
    draws_b: Int64


def _in_blocks(a: Float64, b: Float64, paired: bool) -> _Drawn | None:
    """Samples in order, cut into blocks and drawn; None if there are too few."""
    if min(len(a), len(b)) < 2:
        return None
    block_a, count_a = block_numbers(len(a))
    block_b, count_b = block_numbers(len(b))
    draws_a = draw_blocks(count_a, stream=0)
    return _Drawn(
        Blocks(a, np.ones(len(a), np.int64), block_a, count_a),
        Blocks(b, np.ones(len(b), np.int64), block_b, count_b),
        draws_a,
        draws_a if paired else draw_blocks(count_b, stream=1),
    )


def _statistics(
    name: str, drawn: _Drawn | None, percents: Sequence[float]
) -> Iterator[tuple[str, Draws]]:
    wanted = ["median", *(f"p{percent:g}" for percent in percents)]
    if drawn is None:
        unknown = np.full(DRAWS, np.nan)
        yield from ((f"{label}_{name}_ms", (unknown, unknown)) for label in ["mean", *wanted])
        return
    yield f"mean_{name}_ms", (drawn.a.means(drawn.draws_a), drawn.b.means(drawn.draws_b))
    ranks = [50.0, *percents]
    a = drawn.a.percentiles(drawn.draws_a, ranks)
    b = drawn.b.percentiles(drawn.draws_b, ranks)
    yield from ((f"{label}_{name}_ms", (a[:, i], b[:, i])) for i, label in enumerate(wanted))


def _gaps(
    a: RunSamples, b: RunSamples, paired: bool, percents: Sequence[float]
) -> Iterator[tuple[str, Draws]]:
    """ITL: gaps in blocks of time."""
    count = _time_blocks(a, b)
    drawn = None
    if count and len(a.gaps.ms) and len(b.gaps.ms):
        left, right = (
            Blocks(s.gaps.ms, s.gaps.weights, _block_of_time(s, s.gaps.end_ns, count), count)
            for s in (a, b)
        )
        draws = draw_blocks(count, stream=2)
        drawn = _Drawn(left, right, draws, draws if paired else draw_blocks(count, stream=3))
    yield from _statistics("itl", drawn, percents)


def _rates(
    a: RunSamples, b: RunSamples, paired: bool, _: Sequence[float]
) -> Iterator[tuple[str, Draws]]:
    """Throughputs: what was completed, in blocks of time."""
    count = _time_blocks(a, b)
    if not count:
        return
    draws = draw_blocks(count, stream=4)
    other = draws if paired else draw_blocks(count, stream=5)
    for name in ("request_throughput", "output_throughput", "total_token_throughput"):
        yield name, (_rate(a, name, draws, count), _rate(b, name, other, count))
    if len(a.good) and len(b.good):
        name = "request_goodput"
        yield name, (_rate(a, name, draws, count), _rate(b, name, other, count))


def _rate(samples: RunSamples, name: str, draws: Int64, count: int) -> Float64:
    completed = samples.completed
    prompt, output = int64(completed, "prompt_tokens"), int64(completed, "output_tokens")
    amounts = {
        "request_throughput": np.ones(len(prompt)),
        "output_throughput": output,
        "total_token_throughput": prompt + output,
        "request_goodput": samples.good,
    }
    block = _block_of_time(samples, int64(completed, "finish_ns"), count)
    blocks = Blocks(amounts[name].astype(np.float64), np.ones_like(block), block, count)
    return blocks.sums(draws) / samples.duration_s


def _time_blocks(a: RunSamples, b: RunSamples) -> int:
    """How many blocks of time to cut both runs into; 0 if one is too short."""
    fewest = min(len(a.completed["request_id"]), len(b.completed["request_id"]))
    if fewest < 2 or min(a.duration_s, b.duration_s) <= 0:
        return 0
    return block_numbers(fewest)[1]


def _block_of_time(samples: RunSamples, t_ns: Int64, count: int) -> Int64:
    share = (t_ns - samples.start_ns) / (samples.end_ns - samples.start_ns)
    return np.clip((share * count).astype(np.int64), 0, count - 1)


def _requests(
    a: RunSamples, b: RunSamples, paired: bool, _: Sequence[float]
) -> Iterator[tuple[str, Draws]]:
    """Figures over all measured requests: failures, prefix hits, retractions."""
    rows_a, rows_b = _rows(a.measured, b.measured, paired)
    failed_a = np.where(latency.successful(a.measured)[rows_a], 0.0, 100.0)
    failed_b = np.where(latency.successful(b.measured)[rows_b], 0.0, 100.0)
    failed = _in_blocks(failed_a, failed_b, paired)
    if failed is None:
        return
    yield "failed_percent", (failed.a.means(failed.draws_a), failed.b.means(failed.draws_b))
    retracted = _in_blocks(*_columns(a, b, rows_a, rows_b, "retractions"), paired)
    cached = _in_blocks(*_columns(a, b, rows_a, rows_b, "cached_tokens"), paired)
    prompt = _in_blocks(*_columns(a, b, rows_a, rows_b, "prompt_tokens"), paired)
    if retracted is None or cached is None or prompt is None:
        return
    yield (
        "retractions",
        (
            retracted.a.sums(retracted.draws_a),
            retracted.b.sums(retracted.draws_b),
        ),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        yield (
            "prefix_hit_rate_percent",
            (
                100 * cached.a.sums(cached.draws_a) / prompt.a.sums(prompt.draws_a),
                100 * cached.b.sums(cached.draws_b) / prompt.b.sums(prompt.draws_b),
            ),
        )


def _columns(
    a: RunSamples, b: RunSamples, rows_a: Int64, rows_b: Int64, name: str
) -> tuple[Float64, Float64]:
    """A column of admitted requests in both runs; 0 for those never admitted."""
    left, right = (
        np.where(s.measured["admitted_ns"] >= 0, int64(s.measured, name), 0)[rows]
        for s, rows in ((a, rows_a), (b, rows_b))
    )
    return left.astype(np.float64), right.astype(np.float64)
