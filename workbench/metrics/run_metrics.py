"""From the tables of a run to its summary: one flat dict with the JSON keys of `vllm bench serve`.

Each metric is defined once: latencies in `latency`, throughputs, goodput and which requests count
in `throughput`, what replicas did in `occupancy`, overload in `overload`, percentiles in
`percentiles`. A figure that cannot be had (nothing finished, steps were not recorded) is None. Keys
end in their unit; those without are vLLM's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from engine.core.enums import AdmissionBlock, FinishReason
from engine.core.events import TABLES, Columns, Segment, empty_columns
from workbench.metrics import latency, occupancy, throughput
from workbench.metrics.latency import IterationTimes, MetricsError
from workbench.metrics.overload import judge_load
from workbench.metrics.percentiles import WeightedSamples
from workbench.record.header import RunHeader

Summary = dict[str, Any]

SCHEMA: Final = "workbench/summary/v1"

_NEEDED: Final = ("requests", "decode_spans", "steps")


class SummaryTables:
    """Keeps what a summary needs of the segments that pass through an `EventLog` sink."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []

    def add(self, segment: Segment) -> None:
        """Remember the needed tables of a segment."""
        kept: Segment = {name: dict(segment[name]) for name in _NEEDED if name in segment}
        self._segments.append(kept)

    def tables(self) -> Segment:
        """The needed tables over all segments, which are let go column by column."""
        joined = {
            table: _join([s.pop(table) for s in self._segments if table in s], table)
            for table in _NEEDED
        }
        self._segments = [{table: dict(columns) for table, columns in joined.items()}]
        return joined


def _join(parts: list[Columns], table: str) -> Columns:
    if not parts:
        return empty_columns(table)
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in TABLES[table]}


def summarize(tables: Segment, header: RunHeader, stopped_early: str | None = None) -> Summary:
    """All metrics of a run.

    Args:
        tables: at least `requests`, `decode_spans` and `steps` (`EventLog.tables()`,
            `SummaryTables.tables()` or `RunReader.tables()`).
        header: facts of the run.
        stopped_early: why the run ended before its workload did, if it did.

    Raises:
        MetricsError: the tables contradict each other or the header.
    """
    requests, spans, steps = (tables[name] for name in _NEEDED)
    _check_replicas(steps, header)
    run_end_ns = int(max(steps["end_ns"].max(initial=0), requests["finish_ns"].max(initial=0)))
    subject = throughput.measured(requests, header.measure, run_end_ns)
    iterations = IterationTimes.of(steps) if len(steps["step"]) else None
    summary = {
        **_identity(header, stopped_early),
        **_load(requests, header, run_end_ns),
        **_counts(requests, subject),
        **_throughputs(subject, spans, iterations, header),
        **_latencies(subject, spans, iterations, header.measure.percentiles),
        **_prefix_cache(subject.requests),
        **_retractions(subject.requests),
        **_replicas(requests, steps, subject, header, run_end_ns),
    }
    if not header.load.wants_before_sending():
        summary |= dict.fromkeys(("mean_client_wait_ms", "wait_client_request_s"))
    return summary


def _identity(header: RunHeader, stopped_early: str | None) -> Summary:
    return {
        "schema": SCHEMA,
        "name": header.name,
        "kind": header.kind,
        "model": header.model,
        "gpu": header.gpu,
        "num_gpus": header.num_gpus(),
        "cost_model": header.cost_model,
        "cost_model_notes": "; ".join(header.cost_model_notes) or None,
        "seed": header.seed,
        "commit": header.commit,
        "scenario_sha256": header.scenario_sha256,
        "stopped_early": stopped_early,
    }


def _load(requests: Columns, header: RunHeader, run_end_ns: int) -> Summary:
    verdict = judge_load(requests, header.load.kind, run_end_ns)
    return {
        "overloaded": verdict.overloaded,
        "load_state": verdict.state,
        "load_verdict": verdict.sentence,
        "load_kind": header.load.kind,
        "request_rate": header.load.request_rate,
        "burstiness": header.load.burstiness,
        "max_concurrency": header.load.max_concurrency,
    }


def _counts(requests: Columns, subject: throughput.Measured) -> Summary:
    """How the measured requests ended; `failed` is every one that was sent and not completed."""
    measured = subject.requests
    total = len(measured["request_id"])
    completed = int(latency.successful(measured).sum())
    sent = int((requests["arrival_ns"] >= 0).sum())
    reason = measured["finish_reason"]
    return {
        "duration": subject.duration_s,
        "duration_s": subject.duration_s,
        "completed": completed,
        "failed": total - completed,
        "rejected": int((reason == FinishReason.REJECTED).sum()),
        "aborted": int((reason == FinishReason.ABORT).sum()),
        "errors": int((reason == FinishReason.ERROR).sum()),
        "unfinished": int((reason == FinishReason.NONE).sum()),
        "not_measured": sent - total,
        "not_sent": len(requests["request_id"]) - sent,
    }


def _throughputs(
    subject: throughput.Measured,
    spans: Columns,
    iterations: IterationTimes | None,
    header: RunHeader,
) -> Summary:
    """Sums over completed requests divided by `duration_s`; peaks as their functions say."""
    completed = throughput.select(subject.requests, latency.successful(subject.requests))
    slo = header.slo
    good = int(throughput.good(completed, slo).sum()) if slo.given() else None
    inputs, outputs = (int(completed[f"{k}_tokens"].sum()) for k in ("prompt", "output"))
    peak = None
    if iterations is not None:
        peak = throughput.peak_output_throughput(completed, spans, iterations)
    duration_s = subject.duration_s
    return {
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": _ratio(len(completed["request_id"]), duration_s),
        "request_goodput": None if good is None else _ratio(good, duration_s),
        "output_throughput": _ratio(outputs, duration_s),
        "total_token_throughput": _ratio(inputs + outputs, duration_s),
        "output_throughput_per_gpu": _ratio(outputs, duration_s * header.num_gpus()),
        "max_output_tokens_per_s": peak,
        "max_concurrent_requests": throughput.peak_concurrent_requests(completed),
        "slo_ttft_ms": slo.ttft_ms,
        "slo_tpot_ms": slo.tpot_ms,
        "slo_e2el_ms": slo.e2el_ms,
        "slo_attainment_percent": None if good is None else _percent(good, _sent(subject)),
    }


def _latencies(
    subject: throughput.Measured,
    spans: Columns,
    iterations: IterationTimes | None,
    percents: Sequence[float],
) -> Summary:
    """Mean, median, std and percentiles of each latency over completed requests."""
    completed = throughput.select(subject.requests, latency.successful(subject.requests))
    tpot = latency.tpot_ms(completed)[completed["output_tokens"] > 1]
    gaps = WeightedSamples.of([])
    if iterations is not None:
        gaps = latency.itl(completed, spans, iterations)
    return {
        **_statistics("ttft", WeightedSamples.of(latency.ttft_ms(completed)), percents),
        **_statistics("tpot", WeightedSamples.of(tpot), percents),
        **_statistics("itl", gaps, percents),
        **_statistics("e2el", WeightedSamples.of(latency.e2el_ms(completed)), percents),
        "mean_client_wait_ms": WeightedSamples.of(latency.client_wait_ms(completed)).mean(),
    }


def _statistics(name: str, samples: WeightedSamples, percents: Sequence[float]) -> Summary:
    (median,) = samples.percentiles([50])
    values = samples.percentiles(percents)
    return {
        f"mean_{name}_ms": samples.mean(),
        f"median_{name}_ms": median,
        f"std_{name}_ms": samples.std(),
        **{f"p{p:g}_{name}_ms": value for p, value in zip(percents, values, strict=True)},
    }


def _prefix_cache(requests: Columns) -> Summary:
    """Hit rate = cached prompt tokens at first admission / prompt tokens, of admitted requests."""
    admitted = requests["admitted_ns"] >= 0
    cached, prompt = (int(requests[f"{k}_tokens"][admitted].sum()) for k in ("cached", "prompt"))
    return {
        "cached_tokens": cached,
        "admitted_prompt_tokens": prompt,
        "prefix_hit_rate_percent": _percent(cached, prompt),
    }


def _retractions(requests: Columns) -> Summary:
    """How often running requests were sent back, how many were, and what was computed again."""
    return {
        "retractions": int(requests["retractions"].sum()),
        "retracted_requests": int((requests["retractions"] > 0).sum()),
        "recomputed_tokens": int(requests["recomputed_tokens"].sum()),
    }


def _replicas(
    requests: Columns,
    steps: Columns,
    subject: throughput.Measured,
    header: RunHeader,
    run_end_ns: int,
) -> Summary:
    timeline = occupancy.Timeline.of(steps, requests, run_end_ns)
    window = timeline.within(subject.start_ns, subject.end_ns)
    return {
        **_pages(window, header),
        **_use(window, header),
        **_batches(window),
        **_waits(window, subject.requests),
    }


def _pages(window: occupancy.Window, header: RunHeader) -> Summary:
    num_pages = np.array([replica.num_pages for replica in header.replicas], np.int64)
    kv = occupancy.kv_occupancy(window, num_pages) if _has_steps(window) else None
    return {
        "kv_pages": int(num_pages.sum()),
        "kv_used_mean_percent": kv and 100 * kv.used_mean,
        "kv_used_max_percent": kv and 100 * kv.used_max,
        "kv_cached_mean_percent": kv and 100 * kv.cached_mean,
    }


def _use(window: occupancy.Window, header: RunHeader) -> Summary:
    use = occupancy.utilisation(window, len(header.replicas)) if _has_steps(window) else None
    return {
        "gpu_busy_percent": use and 100 * use.gpu_busy,
        "host_bound_percent": use and 100 * use.host_bound,
        "idle_percent": use and 100 * use.idle,
    }


_BATCH_COLUMNS: Final = (
    "gpu_ns",
    "prefill_tokens",
    "decode_tokens",
    "decode_requests",
    "running",
    "waiting",
    "evicted_pages",
    "extrapolated",
)


def _batches(window: occupancy.Window) -> Summary:
    """Plain means over the steps of the window; `running` and `waiting` over time."""
    steps = window.steps(_BATCH_COLUMNS)
    count = len(steps["gpu_ns"])
    decoding = steps["decode_requests"][steps["decode_requests"] > 0]
    prefill, decode = (int(steps[f"{kind}_tokens"].sum()) for kind in ("prefill", "decode"))
    mixed = (steps["prefill_tokens"] > 0) & (steps["decode_tokens"] > 0)
    recorded = _has_steps(window)
    return {
        "steps": count if recorded else None,
        "evicted_pages": int(steps["evicted_pages"].sum()) if recorded else None,
        "mean_step_ms": _ratio(float(steps["gpu_ns"].sum()) / latency.NS_PER_MS, count),
        "mean_tokens_per_step": _ratio(prefill + decode, count),
        "mean_decode_batch": _ratio(float(decoding.sum()), len(decoding)),
        "mixed_steps_percent": _percent(int(mixed.sum()), count),
        "extrapolated_steps_percent": _percent(int((steps["extrapolated"] > 0).sum()), count),
        "mean_running": occupancy.time_mean(window, "running") if recorded else None,
        "max_running": int(steps["running"].max()) if count else None,
        "mean_waiting": occupancy.time_mean(window, "waiting") if recorded else None,
        "max_waiting": int(steps["waiting"].max()) if count else None,
    }


def _waits(window: occupancy.Window, requests: Columns) -> Summary:
    """Request-seconds in the queue by reason, each with its share of all of them.

    `wait_next_step`: it came while a step was being computed; `wait_none`: nothing held back the
    head of the queue. What the client's own cap held back is `wait_client_request_s`, which is not
    in the total.
    """
    client_s = float(requests["client_wait_ns"].sum()) / latency.NS_PER_S
    if not _has_steps(window):
        return {"wait_total_request_s": None, "wait_client_request_s": client_s}
    waits = {
        "next_step": occupancy.waiting_for_next_step(window.timeline, requests),
        **{
            reason.name.lower(): seconds
            for reason, seconds in occupancy.waiting_by_reason(window).items()
        },
    }
    total = sum(waits.values())
    summary: Summary = {"wait_total_request_s": total, "wait_client_request_s": client_s}
    for name, seconds in waits.items():
        summary[f"wait_{name}_request_s"] = seconds
        summary[f"wait_{name}_percent"] = _percent(seconds, total)
    return summary


WAIT_REASONS: Final = ("next_step", *(reason.name.lower() for reason in AdmissionBlock))


def _check_replicas(steps: Columns, header: RunHeader) -> None:
    highest = int(steps["replica"].max(initial=-1))
    if highest >= len(header.replicas):
        raise MetricsError(
            f"the steps table names replica {highest}, the header has {len(header.replicas)}"
        )


def _has_steps(window: occupancy.Window) -> bool:
    return len(window.timeline.steps["step"]) > 0


def _sent(subject: throughput.Measured) -> int:
    return len(subject.requests["request_id"])


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _percent(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole > 0 else None
