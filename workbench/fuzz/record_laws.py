"""Laws of the record of a finished run: what the events say is what happened."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Final

import numpy as np

from engine.core.enums import FinishReason, MemoryOp, RequestEvent, RequestStatus, RetractReason
from engine.core.events import Columns, EventLog, Segment
from engine.core.request import Request
from workbench.fuzz.rig import LawError, Rig, require

_E = RequestEvent
_NEXT: Final[dict[RequestEvent, frozenset[RequestEvent]]] = {
    _E.ARRIVE: frozenset({_E.ADMIT, _E.FINISH}),
    _E.ADMIT: frozenset({_E.FIRST_TOKEN, _E.RETRACT, _E.AWAIT_KV, _E.FINISH}),
    _E.AWAIT_KV: frozenset({_E.TRANSFER_DONE, _E.FINISH}),
    _E.TRANSFER_DONE: frozenset({_E.FIRST_TOKEN, _E.RETRACT, _E.FINISH}),
    _E.FIRST_TOKEN: frozenset({_E.HOLD_KV, _E.RETRACT, _E.FINISH}),
    _E.HOLD_KV: frozenset({_E.TRANSFER_DONE, _E.FINISH}),
    _E.RETRACT: frozenset({_E.RESUME, _E.FINISH}),
    _E.RESUME: frozenset({_E.FIRST_TOKEN, _E.RETRACT, _E.HOLD_KV, _E.FINISH}),
    _E.FINISH: frozenset(),
    _E.REJECT: frozenset(),
}


def rows_of(table: Columns) -> list[dict[str, int]]:
    """The rows of a table."""
    names = list(table)
    columns = [table[name].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def tables_of(rig: Rig) -> Segment:
    """What the rig's log holds.

    Raises:
        LawError: it has none.
    """
    log: EventLog | None = rig.log
    if log is None:
        raise LawError("this rig records nothing")
    return log.tables()


def check_record(rig: Rig, plans_were_lost: bool = False) -> None:
    """What the events say is what happened, and each request has one end and nothing after it.

    Args:
        rig: at rest.
        plans_were_lost: pages vanished while a plan was made, so that it admitted somebody with a
            prefix hit and then came to nothing: its hits stand in no plan.

    Raises:
        LawError: they say something else.
    """
    tables = tables_of(rig)
    lives: dict[int, list[dict[str, int]]] = {i: [] for i in rig.requests}
    for row in rows_of(tables["lifecycle"]):
        lives[row["request_id"]].append(row)
    ends = Counter(tables["requests"]["request_id"].tolist())
    require(ends == Counter(rig.requests.keys()), "each request has one row", ends)
    for row in rows_of(tables["requests"]):
        _check_life(rig.requests[row["request_id"]], row, lives[row["request_id"]])
    _check_spans(rig, rows_of(tables["decode_spans"]))
    _check_memory(rows_of(tables["memory"]))
    _check_totals(rig, tables, plans_were_lost)


def _check_totals(rig: Rig, tables: Segment, plans_were_lost: bool) -> None:
    life, memory = tables["lifecycle"], tables["memory"]
    admitted = np.isin(life["event"], [_E.ADMIT, _E.RESUME])
    hits = int(life["a"][admitted].sum())
    counted = rig.totals["hit_tokens"]
    same = counted <= hits if plans_were_lost else counted == hits
    require(same, "plans count the hits of admissions", counted, hits)
    retracted = rig.totals["retracted"] + rig.scheduler.book.retracted
    events = int((life["event"] == _E.RETRACT).sum())
    require(retracted == events, "plans count the retractions", retracted, events)
    evicted = int(memory["num_pages"][memory["op"] == MemoryOp.EVICT].sum())
    gone = rig.totals["evicted_pages"] + rig.scheduler.kv.evicted_pages
    require(gone == evicted, "plans count the evicted pages", gone, evicted)


def _check_life(request: Request, row: dict[str, int], life: list[dict[str, int]]) -> None:
    law = "a request lives one legal life"
    events = [RequestEvent(event["event"]) for event in life]
    names = [event.name for event in events]
    count = Counter(events)
    for before, after in pairwise(events):
        require(after in _NEXT[before], law, request, names)
    require(events[0] in (_E.ARRIVE, _E.REJECT), law, request, names)
    require(events[-1] in (_E.FINISH, _E.REJECT), law, request, names)
    require(max(count[_E.ADMIT], count[_E.FIRST_TOKEN]) <= 1, law, request, names)
    require(count[_E.RETRACT] == row["retractions"] == request.retractions, law, request, names)
    resumed = count[_E.RESUME] in (count[_E.RETRACT], count[_E.RETRACT] - 1)
    require(resumed, law, request, names)
    require(row["output_tokens"] == request.committed_outputs, law, request, row)
    has_output = row["output_tokens"] > 0
    told = has_output == (row["first_token_ns"] >= 0) == (_E.FIRST_TOKEN in events)
    require(told, law, request, row)
    require(row["finish_reason"] == request.finish_reason != FinishReason.NONE, law, request, row)
    require(request.status == RequestStatus.FINISHED, law, request)
    if events[-1] == _E.FINISH:
        ends = (row["finish_reason"], row["output_tokens"])
        require((life[-1]["a"], life[-1]["b"]) == ends, law, request, row)
    else:
        require(life[-1]["a"] == row["reject_reason"] > 0, law, request, row)
    times = [row[f"{name}_ns"] for name in ("arrival", "admitted", "first_token", "finish")]
    known = [t for t in times if t >= 0]
    require(known == sorted(known), "time goes forward", request, times)
    require(row["finish_ns"] == life[-1]["t_ns"], law, request, row)


def _check_spans(rig: Rig, spans: list[dict[str, int]]) -> None:
    """Without speculation every output is the end of a prefill or a decode of some span."""
    if rig.config.num_speculative_tokens:
        return
    outputs: Counter[int] = Counter()
    for span in spans:
        require(0 <= span["committed"] <= span["scheduled"], "a span keeps what it planned", span)
        outputs[span["request_id"]] += span["committed"] + (span["token_ns"] >= 0)
    for request_id, request in rig.requests.items():
        count = outputs[request_id]
        require(count == request.committed_outputs, "spans hold every output", request, count)


def _check_memory(rows: list[dict[str, int]]) -> None:
    """Every page is given by its owner: from the free list to a request, to the cache, and back."""
    owner: dict[int, int] = {}
    law = "pages change hands by their owner"
    for row in rows:
        for page in range(row["start_page"], row["start_page"] + row["num_pages"]):
            if row["op"] == MemoryOp.ALLOC:
                require(page not in owner, law, row)
                owner[page] = row["owner"]
            elif row["op"] == MemoryOp.CACHE:
                require(owner.get(page, -1) >= 0 > row["owner"], law, row)
                owner[page] = -1
            else:
                require(owner.pop(page, None) == row["owner"], law, row)
    require(not owner, "no page is left with an owner", owner)


def retract_reasons(rig: Rig) -> set[RetractReason]:
    """Why requests were sent back in this run."""
    life = tables_of(rig)["lifecycle"]
    return {RetractReason(b) for b in life["b"][life["event"] == _E.RETRACT].tolist()}
