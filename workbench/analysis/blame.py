"""The steps to blame for each cause in the life of one request."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.core.events import Columns
from workbench.analysis.attribution import ReplicaView
from workbench.analysis.causes import CAUSES, causes_of
from workbench.analysis.segments import Kind, Segments
from workbench.analysis.source import Int64, prefills_in
from workbench.analysis.timeline import NEVER, ReplicaTimeline

_WAITING = (Kind.WAIT, Kind.WAIT_AGAIN)


@dataclass(frozen=True, slots=True)
class BlamedStep:
    """A step that cost a request time.

    Attributes:
        replica, step: which one; `step` is -1 where the record shows none.
        ns: what it cost the request.
        at_ns: from when on.
        step_ns: from the step's planning to its commit.
        prefills: (request id, tokens) of its prefills of other requests, most tokens first.
        decode_requests: other requests that it decoded.
    """

    replica: int
    step: int
    ns: int
    at_ns: int
    step_ns: int
    prefills: tuple[tuple[int, int], ...]
    decode_requests: int


@dataclass(frozen=True, slots=True)
class CauseShare:
    """What one cause cost a request, and the steps that cost it most, worst first."""

    cause: str
    ns: int
    steps: tuple[BlamedStep, ...]


def blame(
    view: ReplicaView, life: int, items: Columns, most_steps: int
) -> tuple[list[CauseShare], list[CauseShare]]:
    """Causes of one request up to its first token, and after it; in the order of `CAUSES`.

    Args:
        view: the replica of the request.
        life: its position in `view.lives`.
        items: the `items` table, to say who else was in a step.
        most_steps: steps to name per cause.
    """
    mine = view.segments.take(np.flatnonzero(view.segments.life == life))
    pieces, steps = _pieces(mine, view.timeline)
    causes = causes_of(pieces, view.items, view.timeline)
    namer = _StepNamer(view, mine, items)
    phases: list[list[CauseShare]] = []
    for phase in (0, 1):
        shares = []
        for cause in CAUSES:
            ns = np.where(pieces.after_first == phase, causes[cause], 0)
            if ns.any():
                worst = _largest(steps, ns, pieces.t0_ns, most_steps)
                named = tuple(namer.name(*entry) for entry in worst)
                shares.append(CauseShare(cause, int(ns.sum()), named))
        phases.append(shares)
    return phases[0], phases[1]


def _pieces(segments: Segments, timeline: ReplicaTimeline) -> tuple[Segments, Int64]:
    """Segments cut wherever another step becomes responsible, with that step's index."""
    which, t0, t1, steps = [], [], [], []
    for i in range(len(segments)):
        cuts = _cuts(segments, i, timeline)
        which.append(np.full(len(cuts) - 1, i))
        t0.append(cuts[:-1])
        t1.append(cuts[1:])
        steps.append(_responsible(Kind(int(segments.kind[i])), cuts[:-1], cuts[1:], timeline))
    if not which:
        return segments, np.empty(0, np.int64)
    pieces = segments.take(np.concatenate(which))
    return (
        replace(pieces, t0_ns=np.concatenate(t0), t1_ns=np.concatenate(t1)),
        np.concatenate(steps),
    )


def _cuts(segments: Segments, i: int, timeline: ReplicaTimeline) -> Int64:
    t0, t1 = int(segments.t0_ns[i]), int(segments.t1_ns[i])
    if segments.kind[i] in _WAITING:
        inner = timeline.plan_ns
    elif segments.kind[i] == Kind.RESULT:
        inner = np.empty(0, np.int64)
    else:
        inner = np.concatenate((timeline.gpu_start_ns, timeline.gpu_end_ns))
    inner = inner[(inner > t0) & (inner < t1)]
    return np.unique(np.concatenate(([t0, t1], inner)))


def _responsible(kind: Kind, t0: Int64, t1: Int64, timeline: ReplicaTimeline) -> Int64:
    """Index of the step that each piece of one segment waited for, or was computed in."""
    n = len(timeline)
    if n == 0:
        return np.full(len(t0), NEVER, np.int64)
    if kind in _WAITING:
        planned = timeline.last_plan(t0)
        in_flight = np.searchsorted(timeline.end_ns, t0, "right")
        step = np.where(timeline.plan_ns[planned] == t0, planned, in_flight)
    elif kind == Kind.RESULT:
        step = np.searchsorted(timeline.end_ns, t1, "left")
    else:
        step = timeline.step_on_gpu(t0)
        on_gpu = (timeline.gpu_start_ns[step] <= t0) & (t0 < timeline.gpu_end_ns[step])
        prepared = np.searchsorted(timeline.gpu_start_ns, t0, "right")
        step = np.where(on_gpu, step, prepared)
    return np.where(step < n, step, NEVER)


def _largest(steps: Int64, ns: Int64, t0: Int64, most: int) -> list[tuple[int, int, int]]:
    """(step index, ns, first instant) of the steps with the largest sums of `ns`, largest first."""
    costly = np.flatnonzero(ns)
    found, first, inverse = np.unique(steps[costly], return_index=True, return_inverse=True)
    sums = np.zeros(len(found), np.int64)
    np.add.at(sums, inverse, ns[costly])
    order = np.lexsort((found, -sums))[:most]
    return [(int(found[i]), int(sums[i]), int(t0[costly[first[i]]])) for i in order]


class _StepNamer:
    """Says who else was in a step."""

    def __init__(self, view: ReplicaView, mine: Segments, items: Columns) -> None:
        self._view = view
        self._mine = mine
        self._request_id = view.lives.request_id[mine.life[:1]]
        self._items = items

    def name(self, index: int, ns: int, at_ns: int) -> BlamedStep:
        view, timeline = self._view, self._view.timeline
        if index < 0:
            return BlamedStep(view.replica, NEVER, ns, at_ns, 0, (), 0)
        return BlamedStep(
            replica=view.replica,
            step=int(timeline.step[index]),
            ns=ns,
            at_ns=at_ns,
            step_ns=int(timeline.end_ns[index] - timeline.plan_ns[index]),
            prefills=self._others(int(timeline.step[index])),
            decode_requests=int(timeline.decode_requests[index]) - self._decodes_me(index),
        )

    def _decodes_me(self, index: int) -> bool:
        start = self._view.timeline.gpu_start_ns[index]
        inside = (self._mine.own_from_ns <= start) & (start < self._mine.own_until_ns)
        return bool(inside.any() and self._view.timeline.decode_requests[index] > 0)

    def _others(self, step: int) -> tuple[tuple[int, int], ...]:
        everyone = prefills_in(self._items, self._view.replica, step)
        return tuple(pair for pair in everyone if pair[0] not in self._request_id)
