"""What is worth a line beside the charts: hits, evictions, retractions, refusals, marks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from engine.core.enums import (
    AdmissionBlock,
    FinishReason,
    RejectReason,
    RequestEvent,
    RetractReason,
)
from workbench.tui.store.replica_log import ReplicaLog
from workbench.tui.store.run_store import RunStore

FILTERS: Final[dict[str, frozenset[str]]] = {
    "all": frozenset({"hit", "evict", "retract", "reject", "blocked", "mark"}),
    "hits": frozenset({"hit"}),
    "memory": frozenset({"evict", "retract", "blocked"}),
    "lives": frozenset({"arrive", "admit", "finish", "retract", "resume", "reject"}),
    "marks": frozenset({"mark"}),
}
_SCANNED: Final = 1 << 16  # rows and steps that are looked at, backwards from the cursor


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of the event log.

    Attributes:
        position: step during or before which it happened.
        t_ns: when.
        kind: one of the words in `FILTERS`.
        text: what, in words.
        request_id: whom it concerns, if one.
    """

    position: int
    t_ns: int
    kind: str
    text: str
    request_id: int | None = None


def last_happenings(
    store: RunStore, replica: ReplicaLog, position: int, limit: int, kinds: frozenset[str]
) -> list[Happening]:
    """The last `limit` happenings up to the end of a step, oldest first."""
    t_ns = replica.steps.at(position)["end_ns"]
    found = [
        *_of_lives(replica, t_ns, limit, kinds),
        *_of_steps(replica, position, limit, kinds),
        *(_of_marks(store, replica, t_ns, limit) if "mark" in kinds else ()),
    ]
    return sorted(found, key=lambda happening: (happening.t_ns, happening.position))[-limit:]


def _of_lives(
    replica: ReplicaLog, t_ns: int, limit: int, kinds: frozenset[str]
) -> Iterator[Happening]:
    log = replica.lifecycle
    end = int(np.searchsorted(log["t_ns"], t_ns, side="right"))
    start = max(end - _SCANNED, 0)
    event, a = log["event"][start:end], log["a"][start:end]
    wanted = np.zeros(end - start, np.bool_)
    for kind, (code, _) in _LIVES.items():
        if kind in kinds:
            wanted |= (event == code) & ((a > 0) if kind == "hit" else True)
    for at in start + np.flatnonzero(wanted)[-limit:]:
        row = {name: int(log[name][at]) for name in log.names()}
        kind, text = _life(row, kinds)
        planned = replica.steps.position_planned(row["t_ns"])
        yield Happening(planned, row["t_ns"], kind, text, row["request_id"])


def _life(row: dict[str, int], kinds: frozenset[str]) -> tuple[str, str]:
    fitting = (
        (kind, say) for kind, (code, say) in _LIVES.items()
        if code == row["event"] and kind in kinds and (kind != "hit" or row["a"] > 0)
    )  # fmt: skip
    kind, say = next(fitting)
    return kind, f"r{row['request_id']} {say(row['a'], row['b'])}"


_LIVES: Final[dict[str, tuple[RequestEvent, Callable[[int, int], str]]]] = {
    "hit": (RequestEvent.ADMIT, lambda a, b: f"{a:,} cached, {b:,} to do"),
    "admit": (RequestEvent.ADMIT, lambda a, b: f"{b:,} to do, {a:,} cached"),
    "arrive": (RequestEvent.ARRIVE, lambda a, b: f"{a:,} tok, at most {b:,} more"),
    "retract": (
        RequestEvent.RETRACT,
        lambda a, b: f"{RetractReason(b).name.lower()}, {a:,} tok lost",
    ),
    "resume": (RequestEvent.RESUME, lambda a, b: f"{b:,} to redo, {a:,} cached"),
    "finish": (
        RequestEvent.FINISH,
        lambda a, b: f"{FinishReason(a).name.lower()}, {b:,} tok",
    ),
    "reject": (RequestEvent.REJECT, lambda a, _: RejectReason(a).name.lower()),
}


def _of_steps(
    replica: ReplicaLog, position: int, limit: int, kinds: frozenset[str]
) -> Iterator[Happening]:
    steps = replica.steps
    end = position + 1 - steps.first
    start = max(end - _SCANNED, 0)
    plan_ns = steps.column("plan_ns")
    if "evict" in kinds:
        evicted = steps.column("evicted_pages")[start:end]
        for at in start + np.flatnonzero(evicted)[-limit:]:
            text = f"{int(evicted[at - start]):,} cached pages"
            yield Happening(int(at) + steps.first, int(plan_ns[at]), "evict", text)
    if "blocked" in kinds:
        reason = steps.column("block_reason")[start:end]
        waiting = steps.column("waiting")
        changed = np.flatnonzero(np.diff(reason, prepend=reason[:1] if start else [0]))
        for at in start + changed[-limit:]:
            block = AdmissionBlock(int(reason[at - start]))
            if block is not AdmissionBlock.NONE:
                text = f"{block.name.lower()}, {int(waiting[at]):,} waiting"
                yield Happening(int(at) + steps.first, int(plan_ns[at]), "blocked", text)


def _of_marks(store: RunStore, replica: ReplicaLog, t_ns: int, limit: int) -> Iterator[Happening]:
    here = [
        mark for mark in store.marks if mark.t_ns <= t_ns and mark.replica in (None, replica.number)
    ]
    for mark in here[-limit:]:
        position = replica.steps.position_planned(mark.t_ns)
        yield Happening(position, mark.t_ns, "mark", mark.text, mark.request_id)
