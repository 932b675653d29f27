"""Where the time of requests went: every ns of every segment has exactly one cause.

`docs/explain.md` states the rules for people. In short: waiting is put down to the reason that the
scheduler gave at each plan; a running request is charged for what its GPU does, namely the decode
part of steps (its own decodes or those of others) and the prefill part (its own tokens, tokens it
had computed before, those of others, in proportion to tokens); the rest is host time or idleness.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from engine.core.enums import AdmissionBlock
from workbench.analysis.segments import Items, Kind, Segments
from workbench.analysis.source import Int64
from workbench.analysis.timeline import NEVER, ReplicaTimeline

STEP_IN_FLIGHT = "queue_step_in_flight"
QUEUE_IDLE = "queue_idle"
QUEUE_AGAIN = "queue_again"
PIPELINE = "pipeline"
PREFILL_OWN = "prefill_own"
PREFILL_OTHERS = "prefill_others"
RECOMPUTE = "recompute"
DECODE_OWN = "decode_own"
DECODE_OTHERS = "decode_others"
HOST = "host"
IDLE = "idle"


def queue_cause(reason: AdmissionBlock) -> str:
    """Name of the cause "in the queue because of `reason`"."""
    if reason == AdmissionBlock.NONE:
        return STEP_IN_FLIGHT
    return f"queue_{reason.name.lower()}"


QUEUE_CAUSES: Final[tuple[str, ...]] = (
    *(queue_cause(reason) for reason in AdmissionBlock),
    QUEUE_IDLE,
    QUEUE_AGAIN,
)

CAUSES: Final[tuple[str, ...]] = (
    *QUEUE_CAUSES,
    PIPELINE,
    PREFILL_OWN,
    PREFILL_OTHERS,
    DECODE_OTHERS,
    DECODE_OWN,
    RECOMPUTE,
    HOST,
    IDLE,
)

LABELS: Final[dict[str, str]] = {
    STEP_IN_FLIGHT: "queue: the running step had to end first",
    "queue_token_budget": "queue: the step's token budget was spent",
    "queue_running_limit": "queue: max_running_requests were running",
    "queue_kv_pages": "queue: no free KV pages",
    "queue_kv_reserved": "queue: KV pages kept for running requests",
    "queue_retraction": "queue: running requests were being retracted",
    "queue_prefill_limit": "queue: max_prefill_tokens of the step were spent",
    QUEUE_IDLE: "queue: the scheduler was not asked",
    QUEUE_AGAIN: "queue again after a retraction",
    PIPELINE: "planned, an earlier step on the GPU",
    PREFILL_OWN: "own prefill",
    PREFILL_OTHERS: "prefill of others",
    DECODE_OTHERS: "decode of others",
    DECODE_OWN: "decode",
    RECOMPUTE: "recompute after a retraction",
    HOST: "host, not hidden by the GPU",
    IDLE: "admitted, but no step planned",
}


def label(cause: str) -> str:
    """A cause in words."""
    return LABELS.get(cause, cause.replace("_", " "))


def causes_of(segments: Segments, items: Items, timeline: ReplicaTimeline) -> dict[str, Int64]:
    """Cause -> int64[s], ns of each segment. Over all causes they sum to its length exactly."""
    out = {cause: np.zeros(len(segments), np.int64) for cause in CAUSES}
    for kinds, fill in (
        ((Kind.WAIT,), _waiting),
        ((Kind.WAIT_AGAIN,), _waiting_again),
        ((Kind.PREFILL, Kind.DECODE), _running),
        ((Kind.RESULT,), _result),
    ):
        index = np.flatnonzero(np.isin(segments.kind, kinds))
        for cause, ns in fill(segments.take(index), items, timeline).items():
            out[cause][index] += ns
    return out


def _waiting(segments: Segments, _: Items, timeline: ReplicaTimeline) -> dict[str, Int64]:
    """Until the scheduler looks: the step in flight. From then on: the reason of each plan."""
    t0, t1 = segments.t0_ns, segments.t1_ns
    looked = np.minimum(timeline.next_plan_ns(t0), t1)
    in_flight = timeline.planned_until(looked) - timeline.planned_until(t0)
    out = {queue_cause(reason): ns for reason, ns in timeline.blocked(looked, t1).items()}
    out[STEP_IN_FLIGHT] = out[STEP_IN_FLIGHT] + in_flight
    out[QUEUE_IDLE] = looked - t0 - in_flight
    return out


def _waiting_again(segments: Segments, _: Items, __: ReplicaTimeline) -> dict[str, Int64]:
    return {QUEUE_AGAIN: segments.t1_ns - segments.t0_ns}


def _result(segments: Segments, _: Items, __: ReplicaTimeline) -> dict[str, Int64]:
    return {HOST: segments.t1_ns - segments.t0_ns}


def _running(segments: Segments, items: Items, timeline: ReplicaTimeline) -> dict[str, Int64]:
    t0, t1 = segments.t0_ns, segments.t1_ns
    begun = np.clip(segments.pipeline_until_ns, t0, t1)
    on_gpu = timeline.gpu_until(t1) - timeline.gpu_until(begun)
    queued_behind = timeline.gpu_until(begun) - timeline.gpu_until(t0)
    planned = timeline.planned_until(t1) - timeline.planned_until(t0)
    decode = timeline.decode_until(t1) - timeline.decode_until(begun)
    own_from = np.clip(segments.own_from_ns, begun, t1)
    own_until = np.clip(segments.own_until_ns, own_from, t1)
    decode_own = timeline.decode_until(own_until) - timeline.decode_until(own_from)
    prefill_own, recompute = _own_prefill(segments, items, timeline)
    return {
        PIPELINE: queued_behind,
        DECODE_OWN: decode_own,
        DECODE_OTHERS: decode - decode_own,
        PREFILL_OWN: prefill_own,
        RECOMPUTE: recompute,
        PREFILL_OTHERS: on_gpu - decode - prefill_own - recompute,
        HOST: planned - on_gpu - queued_behind,
        IDLE: t1 - t0 - planned,
    }


def _own_prefill(
    segments: Segments, items: Items, timeline: ReplicaTimeline
) -> tuple[Int64, Int64]:
    """Prefill time of each segment's own items: computed for the first time, and computed again."""
    start, end = timeline.gpu_start_ns[items.step], timeline.gpu_end_ns[items.step]
    home = _segment_at(segments, items.life, start)
    of_this_stay = start >= np.append(segments.pipeline_until_ns, 0)[home]
    inside = np.flatnonzero((home >= 0) & of_this_stay)
    home, step = home[inside], items.step[inside]
    start, end = start[inside], np.minimum(end[inside], segments.t1_ns[home])
    end = np.maximum(start, end)
    prefill = end - start - (timeline.decode_until(end) - timeline.decode_until(start))
    total = np.maximum(timeline.prefill_tokens[step], 1)
    again = prefill * np.minimum(items.again_tokens[inside], total) // total
    own = prefill * np.minimum(items.num_tokens[inside], total) // total
    fresh_ns, again_ns = np.zeros((2, len(segments)), np.int64)
    np.add.at(fresh_ns, home, own - again)
    np.add.at(again_ns, home, again)
    return fresh_ns, again_ns


def _segment_at(segments: Segments, life: Int64, t_ns: Int64) -> Int64:
    """Index of the segment of request `life` that holds the instant; NEVER if none does."""
    if not len(segments):
        return np.full(len(life), NEVER, np.int64)
    times = np.unique(segments.t0_ns)
    n = len(times) + 1
    key = segments.life * n + np.searchsorted(times, segments.t0_ns, "right")
    at = np.searchsorted(key, life * n + np.searchsorted(times, t_ns, "right"), "right") - 1
    at = np.maximum(at, 0)
    held = (segments.life[at] == life) & (segments.t0_ns[at] <= t_ns) & (t_ns < segments.t1_ns[at])
    return np.where(held, at, NEVER)
