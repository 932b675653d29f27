"""What must happen to a scheduler in a long exploration, and what has."""

from __future__ import annotations

from typing import Final

from engine.core.enums import (
    AdmissionBlock,
    FinishReason,
    RejectReason,
    RequestEvent,
    RetractReason,
    TransferStatus,
)
from engine.core.events import EventLog
from engine.core.plan import StepPlan
from workbench.fuzz.rig import Rig
from workbench.fuzz.scheduler_setup import IN_RUN

MARKS: Final = frozenset(
    {f"fault {name}" for name in IN_RUN}
    | {f"blocked {block.name}" for block in AdmissionBlock}
    | {f"ended {reason.name}" for reason in FinishReason if reason}
    | {f"rejected {reason.name}" for reason in RejectReason if reason}
    | {f"retracted {reason.name}" for reason in RetractReason}
    | {f"transfer {status.name}" for status in TransferStatus}
    | {
        "fed by a plan in flight", "graph", "evicted", "prefix hit", "deferred pages",
        "orphaned pages", "verify", "recorded", "replayed", "four plans in flight",
        "transfer in part", "transfer told twice", "transfer told late", "transfer failed",
        "resumed", "aborted in flight", "not a number", "withdrawn",
    }
)  # fmt: skip

_BLOCKED: Final = [f"blocked {block.name}" for block in AdmissionBlock]
_OWN_END: Final = (FinishReason.STOP, FinishReason.LENGTH)
_MOST_PLANS: Final = 4


def marks_of_plan(rig: Rig, plan: StepPlan) -> set[str]:
    """Which branches a plan has seen, right after it was made."""
    marks = {_BLOCKED[plan.block_reason]}
    if plan.feeds_from >= 0:
        marks.add("fed by a plan in flight")
    if plan.graph_batch:
        marks.add("graph")
    if plan.evicted_pages:
        marks.add("evicted")
    if plan.hit_tokens:
        marks.add("prefix hit")
    if plan.verifies:
        marks.add("verify")
    if len(rig.device.in_flight) == _MOST_PLANS:
        marks.add("four plans in flight")
    kv = rig.scheduler.kv
    if kv.has_deferred:
        marks.add("deferred pages")
    if kv.pool.orphaned_pages > len(rig.shrunk):
        marks.add("orphaned pages")
    return marks


def marks_of_ends(rig: Rig) -> set[str]:
    """How the requests of a run have ended."""
    marks: set[str] = set()
    for request_id, request in rig.requests.items():
        marks.add(f"ended {request.finish_reason.name}")
        if request.reject_reason:
            marks.add(f"rejected {request.reject_reason.name}")
        if request.retractions and request.finish_reason in _OWN_END:
            marks.add("resumed")
        if request_id in rig.broken:
            marks.add("not a number")
    return marks


def marks_of_events(log: EventLog) -> set[str]:
    """What only the events tell."""
    life = log.tables()["lifecycle"]
    retracted = life["b"][life["event"] == RequestEvent.RETRACT].tolist()
    moved = life["b"][life["event"] == RequestEvent.TRANSFER_DONE].tolist()
    marks = {f"retracted {RetractReason(reason).name}" for reason in set(retracted)}
    return marks | {f"transfer {TransferStatus(status).name}" for status in set(moved)}
