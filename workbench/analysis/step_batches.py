"""What the steps of one replica did, in a form in which two runs can be laid side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from engine.core.enums import AdmissionBlock, RequestEvent
from engine.core.events import Columns, Detail
from workbench.analysis.source import Int64, RunTables, detail_of, int64
from workbench.analysis.timeline import NEVER

# Columns of `steps` that say what was batched.
BATCH: Final = (
    "prefill_tokens",
    "prefill_requests",
    "prefill_context",
    "decode_requests",
    "decode_tokens",
    "decode_context",
    "retracted",
)
# Columns that say in which state the scheduler was left; they bear on later steps.
STATE: Final = ("block_reason", "waiting", "used_pages", "cached_pages", "evicted_pages")


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step of one run.

    Attributes:
        step: its id.
        plan_ns, start_ns: when it was planned, and when the GPU began.
        prefills: request id -> (tokens, tokens already in its KV cache); empty without items.
        decodes: ids of the requests it decoded; `decode_requests` is their number.
        admitted, retracted: ids of requests admitted by its plan, and sent back since the plan
            before.
        block_reason: why the head of the queue was not admitted.
        running, waiting: after planning.
    """

    step: int
    plan_ns: int
    start_ns: int
    prefills: dict[int, tuple[int, int]]
    decodes: frozenset[int]
    decode_requests: int
    admitted: frozenset[int]
    retracted: frozenset[int]
    block_reason: AdmissionBlock
    running: int
    waiting: int


@dataclass(frozen=True, slots=True)
class ReplicaSteps:
    """All steps of one replica of one run, ordered by step id.

    Attributes:
        replica: its number.
        steps: columns of `steps`, int64[n], and `used_pages`, those that requests hold.
        items: prefill and verify items as columns of int64, ordered by (step, request).
        spans: `decode_spans` as columns of int64, ordered by (request, first iteration).
        lifecycle: that table's rows of this replica.
        has_items: whether items were recorded at all.
    """

    replica: int
    steps: dict[str, Int64]
    items: dict[str, Int64]
    spans: dict[str, Int64]
    lifecycle: dict[str, Int64]
    has_items: bool

    def __len__(self) -> int:
        return len(self.steps["step"])

    def step_of_iteration(self, iteration: int) -> int:
        """Position of the step that held a decode iteration; NEVER if none did."""
        rows = np.flatnonzero(self.steps["decode_iteration"] == iteration)
        return int(rows[0]) if len(rows) else NEVER

    def batch(self, position: int) -> StepBatch:
        """The step at a position."""
        facts = {name: int(column[position]) for name, column in self.steps.items()}
        previous_ns = int(self.steps["plan_ns"][position - 1]) if position else -1
        return StepBatch(
            step=facts["step"],
            plan_ns=facts["plan_ns"],
            start_ns=facts["start_ns"],
            prefills=self._prefills(facts["step"]),
            decodes=self._decodes(facts["decode_iteration"]),
            decode_requests=facts["decode_requests"],
            admitted=self._happened(
                (RequestEvent.ADMIT, RequestEvent.RESUME), previous_ns, facts["plan_ns"]
            ),
            retracted=self._happened((RequestEvent.RETRACT,), previous_ns, facts["plan_ns"]),
            block_reason=AdmissionBlock(facts["block_reason"]),
            running=facts["running"],
            waiting=facts["waiting"],
        )

    def first_prefill(self, request_id: int, after_step: int) -> int:
        """Id of the first step from `after_step` on that prefills the request, or NEVER."""
        items = self.items
        rows = np.flatnonzero((items["request_id"] == request_id) & (items["step"] >= after_step))
        return int(items["step"][rows].min()) if len(rows) else NEVER

    def _prefills(self, step: int) -> dict[int, tuple[int, int]]:
        items = self.items
        first, last = np.searchsorted(items["step"], [step, step + 1])
        names = ("request_id", "num_tokens", "context_tokens")
        rows = zip(*(items[name][first:last].tolist() for name in names), strict=True)
        return {request: (tokens, context) for request, tokens, context in rows}

    def _decodes(self, iteration: int) -> frozenset[int]:
        if iteration < 0:
            return frozenset()
        spans = self.spans
        since = iteration - spans["first_iteration"]
        here = (since >= 0) & (since < spans["scheduled"])
        return frozenset(spans["request_id"][here].tolist())

    def _happened(
        self, events: tuple[RequestEvent, ...], after_ns: int, until_ns: int
    ) -> frozenset[int]:
        t, event = self.lifecycle["t_ns"], self.lifecycle["event"]
        here = (t > after_ns) & (t <= until_ns) & np.isin(event, events)
        return frozenset(self.lifecycle["request_id"][here].tolist())


def replica_steps(run: RunTables, replica: int) -> ReplicaSteps:
    """Steps of `replica`, with as much about their batches as was recorded."""
    detail = detail_of(run)
    steps = _rows(run.table("steps"), replica, ("step",))
    pool = [facts.num_pages for facts in run.header.replicas][replica : replica + 1]
    steps["used_pages"] = sum(pool) - steps["free_pages"] - steps["cached_pages"]
    return ReplicaSteps(
        replica=replica,
        steps=steps,
        items=_rows(run.table("items"), replica, ("step", "request_id")),
        spans=_rows(run.table("decode_spans"), replica, ("request_id", "first_iteration")),
        lifecycle=_rows(run.table("lifecycle"), replica, ()),
        has_items=detail >= Detail.ITEMS,
    )


def _rows(table: Columns, replica: int, order_by: tuple[str, ...]) -> dict[str, Int64]:
    rows = np.flatnonzero(table["replica"] == replica)
    if order_by:
        rows = rows[np.lexsort([table[name][rows] for name in reversed(order_by)])]
    return {name: int64(table, name)[rows] for name in table}
