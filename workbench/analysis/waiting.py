"""Why requests waited, and which steps held up most decodes: sums over a whole run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.core.events import Columns
from workbench.analysis.attribution import Attribution, ReplicaView
from workbench.analysis.causes import QUEUE_CAUSES
from workbench.analysis.segments import Kind
from workbench.analysis.source import Bool, Int64, prefills_in

NS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class WaitReason:
    """Time that requests spent in the queue for one reason, over all of them."""

    cause: str
    request_seconds: float
    requests: int


@dataclass(frozen=True, slots=True)
class WorstStep:
    """A step whose prefill held up requests that were decoding.

    Attributes:
        replica, step, start_ns, gpu_ns: which one.
        prefill_ns: its GPU time beyond what its decodes alone would have cost.
        delayed_requests: requests that were decoding on the replica when it began.
        delay_ns: `prefill_ns` times `delayed_requests`: request time lost.
        prefills: (request id, tokens), most tokens first.
    """

    replica: int
    step: int
    start_ns: int
    gpu_ns: int
    prefill_ns: int
    delayed_requests: int
    delay_ns: int
    prefills: tuple[tuple[int, int], ...]


def wait_reasons(attribution: Attribution, counted: Bool) -> tuple[WaitReason, ...]:
    """Request-seconds in the queue by reason, longest first; `counted` bool[n] picks requests."""
    causes = attribution.e2e_ns()
    reasons = []
    for cause in QUEUE_CAUSES:
        ns = causes[cause][counted]
        if ns.any():
            reasons.append(WaitReason(cause, int(ns.sum()) / NS_PER_S, int(np.count_nonzero(ns))))
    return tuple(sorted(reasons, key=lambda reason: -reason.request_seconds))


def worst_steps(attribution: Attribution, items: Columns, most: int) -> tuple[WorstStep, ...]:
    """Steps with the largest `delay_ns` over all replicas, worst first; none without a delay."""
    found = [step for view in attribution.views for step in _worst_of(view, most)]
    found.sort(key=lambda step: (-step.delay_ns, step.replica, step.step))
    return tuple(
        replace(step, prefills=prefills_in(items, step.replica, step.step)) for step in found[:most]
    )


def _worst_of(view: ReplicaView, most: int) -> list[WorstStep]:
    timeline = view.timeline
    gpu = timeline.gpu_end_ns - timeline.gpu_start_ns
    prefill = gpu - timeline.decode_ns
    delayed = _decoding_at(view, timeline.gpu_start_ns)
    delay = prefill * delayed
    return [
        WorstStep(
            replica=view.replica,
            step=int(timeline.step[i]),
            start_ns=int(timeline.gpu_start_ns[i]),
            gpu_ns=int(gpu[i]),
            prefill_ns=int(prefill[i]),
            delayed_requests=int(delayed[i]),
            delay_ns=int(delay[i]),
            prefills=(),
        )
        for i in np.argsort(-delay, kind="stable")[:most].tolist()
        if delay[i] > 0
    ]


def _decoding_at(view: ReplicaView, t_ns: Int64) -> Int64:
    """Requests of the replica that are between two of their tokens at each instant."""
    decoding = view.segments.kind == Kind.DECODE
    began = np.sort(view.segments.t0_ns[decoding])
    left = np.sort(view.segments.t1_ns[decoding])
    return np.searchsorted(began, t_ns, "right") - np.searchsorted(left, t_ns, "right")
