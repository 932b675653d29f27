"""Lives of requests, cut into segments: waiting, running, waiting again, result on its way.

The segments of a request partition the time from its arrival to its end. They come from the events
of its life in order of time: ARRIVE, ADMIT (or RESUME), TOKEN (a prefill is committed and its token
is out), RETRACT, END. Each event opens a segment that lasts until the next event.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from engine.core.enums import ItemKind, RequestEvent
from engine.core.events import Columns
from workbench.analysis.source import Int64, int64, starts_of_groups
from workbench.analysis.timeline import NEVER, ReplicaTimeline


class Kind(IntEnum):
    """What a request does during a segment."""

    WAIT = 0  # in the queue, never admitted so far
    WAIT_AGAIN = 1  # in the queue after a retraction
    PREFILL = 2  # admitted, no token of this stay out yet
    DECODE = 3
    RESULT = 4  # the GPU has finished, the host has not committed yet


class _Opens(IntEnum):
    """Events in the order in which they happen at one instant."""

    ARRIVE = 0
    ADMIT = 1
    TOKEN = 2
    RETRACT = 3
    RESUME = 4
    END = 5


_FROM_LIFECYCLE = (
    (RequestEvent.RETRACT, _Opens.RETRACT),
    (RequestEvent.RESUME, _Opens.RESUME),
)
_KIND = np.array([Kind.WAIT, Kind.PREFILL, Kind.DECODE, Kind.WAIT_AGAIN, Kind.PREFILL])


@dataclass(frozen=True, slots=True)
class Lives:
    """Requests of one replica, in the terms that segments need; int64[k] each.

    Attributes:
        rows: row in the `requests` table.
        request_id, arrival_ns: as in that table.
        admitted_ns, first_token_ns: NEVER where it did not happen.
        end_ns: when it finished, or the end of the record.
    """

    rows: Int64
    request_id: Int64
    arrival_ns: Int64
    admitted_ns: Int64
    first_token_ns: Int64
    end_ns: Int64

    def index_of(self, request_id: Int64) -> Int64:
        """Position of each request id in these arrays; NEVER if it is not among them."""
        order = np.argsort(self.request_id, kind="stable")
        at = np.searchsorted(self.request_id, request_id, sorter=order)
        found = np.append(order, NEVER)[at]
        known = (found >= 0) & (self.request_id[found] == request_id) if len(order) else found >= 0
        return np.where(known, found, NEVER)


@dataclass(frozen=True, slots=True)
class Items:
    """Prefill items of `Lives` on their replica, in order of (request, step); int64[m] each.

    Attributes:
        life: position of the request in `Lives`.
        step: index of the step in the timeline.
        num_tokens: tokens computed.
        again_tokens: those of them that had been computed before a retraction.
    """

    life: Int64
    step: Int64
    num_tokens: Int64
    again_tokens: Int64


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments in order of (request, time); int64[s] each. `life` is a position in `Lives`.

    Attributes:
        after_first: 1 where the segment lies behind the request's first token.
        pipeline_until_ns: when the first step of this stay began on the GPU.
        own_from_ns, own_until_ns: the request decodes in every decode step between the two.
    """

    life: Int64
    kind: Int64
    t0_ns: Int64
    t1_ns: Int64
    after_first: Int64
    pipeline_until_ns: Int64
    own_from_ns: Int64
    own_until_ns: Int64

    def __len__(self) -> int:
        return len(self.life)

    def take(self, index: Int64) -> Segments:
        """The segments at `index`, in that order."""
        columns = {name: getattr(self, name)[index] for name in self.__slots__}
        return Segments(**columns)


def lives_on(requests: Columns, replica: int, record_end_ns: int) -> Lives:
    """Requests that reached `replica` (-1: that were sent but reached none)."""
    sent = int64(requests, "arrival_ns") >= 0
    rows = np.flatnonzero(sent & (requests["replica"] == replica))
    column = {name: int64(requests, name)[rows] for name in requests}
    arrival = column["arrival_ns"]
    end = np.where(column["finish_ns"] >= 0, column["finish_ns"], record_end_ns)
    return Lives(
        rows=rows,
        request_id=column["request_id"],
        arrival_ns=arrival,
        admitted_ns=column["admitted_ns"],
        first_token_ns=column["first_token_ns"],
        end_ns=np.maximum(end, arrival),
    )


def prefill_items(items: Columns, lives: Lives, timeline: ReplicaTimeline, replica: int) -> Items:
    """Prefill items of `lives`. Verify items are left out: they belong to the decode part."""
    wanted = (items["replica"] == replica) & (items["kind"] == ItemKind.PREFILL)
    life = lives.index_of(int64(items, "request_id")[wanted])
    step = timeline.index_of(int64(items, "step")[wanted])
    tokens = int64(items, "num_tokens")[wanted]
    context = int64(items, "context_tokens")[wanted]
    order = np.lexsort((step, life))
    order = order[(life[order] >= 0) & (step[order] >= 0)]
    life, step, tokens, context = life[order], step[order], tokens[order], context[order]
    computed = _most_before(life, context + tokens)
    again = tokens - np.clip(context + tokens - np.maximum(computed, context), 0, tokens)
    first_token = lives.first_token_ns[life]
    after_first = (first_token >= 0) & (timeline.plan_ns[step] >= first_token)
    return Items(life, step, tokens, np.where(after_first, tokens, again))


def _most_before(group: Int64, values: Int64) -> Int64:
    """Largest of `values` (>= 0) among earlier rows of the same group; 0 for the first."""
    if not len(group):
        return values
    span = int(values.max()) + 1
    running = np.maximum.accumulate(group * span + values) - group * span
    before = np.concatenate(([0], running[:-1]))
    before[starts_of_groups(group)] = 0
    return before


def build_segments(
    lives: Lives,
    items: Items,
    timeline: ReplicaTimeline,
    spans: Columns,
    lifecycle: Columns,
    replica: int,
) -> Segments:
    """Segments of all `lives`. Empty ones are left out."""
    here = np.flatnonzero((spans["replica"] == replica) & (int64(spans, "token_ns") >= 0))
    stays = {name: int64(spans, name)[here] for name in spans}
    stay_life = lives.index_of(stays["request_id"])
    life, t, opens = _events(lives, stay_life, stays["token_ns"], lifecycle, replica)
    stay_ns = _stay_start(life, t, opens)
    nexts = np.append(t[1:], 0)
    first_token = lives.first_token_ns[life]
    segments = Segments(
        life=life,
        kind=_kinds(opens),
        t0_ns=t,
        t1_ns=nexts,
        after_first=((first_token >= 0) & (t >= first_token)).astype(np.int64),
        pipeline_until_ns=_first_gpu_start(life, stay_ns, items, timeline),
        own_from_ns=np.zeros(len(life), np.int64),
        own_until_ns=np.zeros(len(life), np.int64),
    )
    segments = segments.take(np.flatnonzero((opens != _Opens.END) & (nexts > t)))
    segments = _with_own_decodes(segments, stay_life, stays, timeline)
    return _split_results(segments, timeline)


def _events(
    lives: Lives, span_life: Int64, token_ns: Int64, lifecycle: Columns, replica: int
) -> tuple[Int64, Int64, Int64]:
    """Life, time and `_Opens` of every event, in order, inside [arrival, end] of its request."""
    everyone = np.arange(len(lives.rows))
    admitted = np.flatnonzero(lives.admitted_ns >= 0)
    answered = np.flatnonzero(lives.first_token_ns >= 0)
    here = lifecycle["replica"] == replica
    parts = [
        (everyone, lives.arrival_ns, _Opens.ARRIVE),
        (admitted, lives.admitted_ns[admitted], _Opens.ADMIT),
        (answered, lives.first_token_ns[answered], _Opens.TOKEN),
        (span_life, token_ns, _Opens.TOKEN),
        (everyone, lives.end_ns, _Opens.END),
    ]
    for event, opens in _FROM_LIFECYCLE:
        rows = np.flatnonzero(here & (lifecycle["event"] == event))
        life = lives.index_of(int64(lifecycle, "request_id")[rows])
        parts.append((life, int64(lifecycle, "t_ns")[rows], opens))
    life = np.concatenate([part[0] for part in parts])
    t = np.concatenate([part[1] for part in parts])
    opens_all = np.concatenate([np.full(len(part[0]), part[2], np.int64) for part in parts])
    keep = life >= 0
    life, t, opens_all = life[keep], t[keep], opens_all[keep]
    t = np.clip(t, lives.arrival_ns[life], lives.end_ns[life])
    order = np.lexsort((opens_all, t, life))
    return life[order], t[order], opens_all[order]


def _kinds(opens: Int64) -> Int64:
    """`Kind` of the segment behind each event. A token of a request not running changes nothing."""
    here = np.arange(len(opens))
    moves = (opens != _Opens.TOKEN) & (opens != _Opens.END)
    state = opens[np.maximum.accumulate(np.where(moves, here, 0))]
    kind = _KIND[state]
    return np.where((opens == _Opens.TOKEN) & (kind == Kind.PREFILL), int(Kind.DECODE), kind)


def _stay_start(life: Int64, t: Int64, opens: Int64) -> Int64:
    """Time of the latest ADMIT or RESUME of the same request at each event; NEVER if none."""
    if not len(life):
        return t
    here = np.arange(len(life))
    starts = (opens == _Opens.ADMIT) | (opens == _Opens.RESUME)
    latest = np.maximum.accumulate(np.where(starts, here, -1))
    group = starts_of_groups(life)
    first = np.repeat(group, np.diff(np.append(group, len(life))))
    return np.where(latest >= first, t[latest], NEVER)


def _first_gpu_start(life: Int64, stay_ns: Int64, items: Items, timeline: ReplicaTimeline) -> Int64:
    """GPU start of the first step planned with the request in its stay; int64 max if none was."""
    n = len(timeline) + 1
    first_step = np.searchsorted(timeline.plan_ns, stay_ns, "left")
    at = np.searchsorted(items.life * n + items.step, life * n + first_step)
    owner = np.append(items.life, NEVER)[at]
    step = np.append(items.step, 0)[at]
    never = np.iinfo(np.int64).max
    if not len(timeline):
        return np.full(len(life), never)
    return np.where((owner == life) & (stay_ns >= 0), timeline.gpu_start_ns[step], never)


def _with_own_decodes(
    segments: Segments, span_life: Int64, spans: dict[str, Int64], timeline: ReplicaTimeline
) -> Segments:
    """Fill `own_from_ns` and `own_until_ns` of decode segments from the spans they open."""
    first = timeline.step_of_iteration(spans["first_iteration"])
    last = timeline.step_of_iteration(spans["first_iteration"] + spans["scheduled"] - 1)
    used = np.flatnonzero((span_life >= 0) & (first >= 0) & (last >= first))
    if not len(used):
        return segments
    order = used[np.lexsort((spans["token_ns"][used], span_life[used]))]
    times = np.unique(np.concatenate((spans["token_ns"][order], segments.t0_ns)))
    n = len(times)
    span_key = span_life[order] * n + np.searchsorted(times, spans["token_ns"][order])
    key = segments.life * n + np.searchsorted(times, segments.t0_ns)
    at = np.searchsorted(span_key, key)
    exact = np.append(span_key, NEVER)[at] == key
    opened = (segments.kind == Kind.DECODE) & exact
    span = np.append(order, 0)[at]
    return replace(
        segments,
        own_from_ns=np.where(opened, timeline.gpu_start_ns[first[span]], 0),
        own_until_ns=np.where(opened, timeline.gpu_end_ns[last[span]], 0),
    )


def _split_results(segments: Segments, timeline: ReplicaTimeline) -> Segments:
    """Cut off what lies between the GPU's end and the commit that ended a running segment."""
    running = (segments.kind == Kind.PREFILL) | (segments.kind == Kind.DECODE)
    ready = np.maximum(timeline.result_ready_ns(segments.t1_ns), segments.t0_ns)
    ready = np.where(running, ready, segments.t1_ns)
    body = replace(segments, t1_ns=ready)
    tail = replace(segments, t0_ns=ready, kind=np.full(len(segments), int(Kind.RESULT)))
    both = Segments(
        **{
            name: np.stack((getattr(body, name), getattr(tail, name)), axis=1).ravel()
            for name in Segments.__slots__
        }
    )
    return both.take(np.flatnonzero(both.t1_ns > both.t0_ns))
