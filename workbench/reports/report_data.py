"""What the pictures of a run show, as arrays: binned over time, or sorted for a distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.core.enums import AdmissionBlock
from engine.core.events import Columns
from workbench.metrics import latency
from workbench.metrics.occupancy import Timeline, used_pages
from workbench.metrics.throughput import measured, select
from workbench.metrics.time_bins import Bins, Intervals
from workbench.record.errors import RunRecordError
from workbench.record.header import RunHeader
from workbench.record.run_record import RunReader

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BatchOverTime:
    """Per bin: means over the steps that ran in it, weighted by GPU time, and maxima (float64)."""

    prefill_tokens: Float64
    prefill_tokens_max: Float64
    decode_tokens: Float64
    decode_tokens_max: Float64
    step_ms: Float64
    step_ms_max: Float64


@dataclass(frozen=True, slots=True)
class KvOverTime:
    """Per bin: shares of all KV pages in percent, time-weighted; with `free` they sum to 100."""

    used: Float64
    cached: Float64
    free: Float64


@dataclass(frozen=True, slots=True)
class QueueOverTime:
    """Per bin: time-weighted number of requests over all replicas; `waiting` by why."""

    running: Float64
    waiting: dict[AdmissionBlock, Float64]


@dataclass(frozen=True, slots=True)
class Latencies:
    """Sorted latencies of measured, completed requests, in ms."""

    ttft_ms: Float64
    tpot_ms: Float64
    e2el_ms: Float64


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything the report draws.

    Attributes:
        measured_s: start and end of the time in which measured requests were served.
    """

    header: RunHeader
    bins: Bins
    batch: BatchOverTime
    kv: KvOverTime
    queue: QueueOverTime
    latencies: Latencies
    measured_s: tuple[float, float]


def report_data(run: RunReader, bin_count: int = 240) -> ReportData:
    """Read and bin a run.

    Raises:
        RunRecordError: the run did not record its steps, or made none.
    """
    if not run.recorded("steps"):
        raise RunRecordError(
            f"{run.path} was recorded with detail 'none'; "
            "a report needs a run with detail 'steps' or more"
        )
    requests, steps = run.table("requests"), run.table("steps")
    if not len(steps["step"]):
        raise RunRecordError(f"{run.path} has no steps to draw")
    run_end_ns = int(max(steps["end_ns"].max(), requests["finish_ns"].max(initial=0)))
    bins = Bins.over(0, run_end_ns, bin_count)
    timeline = Timeline.of(steps, requests, run_end_ns)
    num_pages = np.array([replica.num_pages for replica in run.header.replicas], np.int64)
    subject = measured(requests, run.header.measure, run_end_ns)
    return ReportData(
        header=run.header,
        bins=bins,
        batch=_batch(timeline.steps, bins),
        kv=_kv(timeline, bins, num_pages),
        queue=_queue(timeline, bins),
        latencies=_latencies(select(subject.requests, latency.successful(subject.requests))),
        measured_s=(subject.start_ns / 1e9, subject.end_ns / 1e9),
    )


def _batch(steps: Columns, bins: Bins) -> BatchOverTime:
    start = steps["start_ns"].astype(np.int64)
    on_gpu = Intervals(start, start + steps["gpu_ns"], bins)
    busy = on_gpu.mean(np.ones(len(start)))
    gpu_ms = steps["gpu_ns"] / latency.NS_PER_MS

    def mean(values: NDArray[np.generic]) -> Float64:
        return np.divide(on_gpu.mean(values), busy, out=np.zeros(bins.count), where=busy > 0)

    return BatchOverTime(
        prefill_tokens=mean(steps["prefill_tokens"]),
        prefill_tokens_max=bins.largest(start, steps["prefill_tokens"]),
        decode_tokens=mean(steps["decode_tokens"]),
        decode_tokens_max=bins.largest(start, steps["decode_tokens"]),
        step_ms=mean(gpu_ms),
        step_ms_max=bins.largest(start, gpu_ms),
    )


def _kv(timeline: Timeline, bins: Bins, num_pages: NDArray[np.int64]) -> KvOverTime:
    steps = timeline.steps
    total = num_pages.sum()
    held = Intervals(steps["plan_ns"], timeline.busy_end_ns, bins)
    kept = Intervals(steps["plan_ns"], timeline.next_plan_ns, bins)
    used = 100 * held.mean(used_pages(steps, num_pages)) / total
    cached = 100 * kept.mean(steps["cached_pages"]) / total
    return KvOverTime(used, cached, 100 - used - cached)


def _queue(timeline: Timeline, bins: Bins) -> QueueOverTime:
    steps = timeline.steps
    held = Intervals(steps["plan_ns"], timeline.busy_end_ns, bins)
    waiting = {
        reason: held.mean(np.where(steps["block_reason"] == reason, steps["waiting"], 0))
        for reason in AdmissionBlock
        if (steps["waiting"][steps["block_reason"] == reason] > 0).any()
    }
    return QueueOverTime(held.mean(steps["running"]), waiting)


def _latencies(completed: Columns) -> Latencies:
    tpot = latency.tpot_ms(completed)[completed["output_tokens"] > 1]
    return Latencies(
        np.sort(latency.ttft_ms(completed)), np.sort(tpot), np.sort(latency.e2el_ms(completed))
    )
