"""Runs made by hand or at random, for tests of what reads run tables."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from engine.core.enums import AdmissionBlock, FinishReason, ItemKind, RequestEvent
from engine.core.events import TABLES, Columns, Detail, recorded_tables
from workbench.record.header import LoadFacts, ReplicaFacts, RunHeader

MS = 1_000_000
Row = dict[str, int]

_NEVER = {"admitted_ns", "first_token_ns", "finish_ns", "parent"}


def header(num_replicas: int = 1, **changes) -> RunHeader:
    """A header with plain facts."""
    facts = dict(
        name="hand-made",
        kind="simulation",
        detail="items",
        seed=1,
        model="tiny",
        gpu="h200",
        cost_model="analytic, uncalibrated",
        replicas=tuple(
            ReplicaFacts(
                num_pages=100, page_size=16, max_num_batched_tokens=64, max_running_requests=8
            )
            for _ in range(num_replicas)
        ),
        load=LoadFacts(kind="poisson", request_rate=1.0),
        status="complete",
    )
    return RunHeader(**(facts | changes))


@dataclass
class HandMadeRun:
    """Rows of tables; columns that a row leaves out are 0, or -1 where that means never."""

    header: RunHeader = field(default_factory=header)
    rows: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in TABLES})

    def add(self, table: str, **row: int) -> None:
        assert row.keys() <= TABLES[table].keys(), row.keys() - TABLES[table].keys()
        self.rows[table].append(row)

    def table(self, name: str) -> Columns:
        rows = (
            self.rows[name] if name in recorded_tables(Detail[self.header.detail.upper()]) else []
        )
        return {
            column: np.array([row.get(column, -(column in _NEVER)) for row in rows], dtype)
            for column, dtype in TABLES[name].items()
        }

    def add_step(self, step: int, plan: int, start: int, gpu: int, end: int, **row: int) -> None:
        """A step; it decodes iff `decode_iteration` is given."""
        decodes = row.get("decode_requests", 0)
        defaults = {"decode_iteration": -1, "decode_tokens": decodes, "gpu_ns": gpu}
        times = {"step": step, "plan_ns": plan, "start_ns": start, "end_ns": end}
        self.add("steps", **(defaults | times | row))

    def add_item(self, step: int, request_id: int, num_tokens: int, context: int = 0, replica=0):
        self.add(
            "items",
            step=step,
            replica=replica,
            request_id=request_id,
            kind=int(ItemKind.PREFILL),
            num_tokens=num_tokens,
            context_tokens=context,
        )

    def add_span(
        self, request_id: int, token: int, first: int, scheduled: int, replica=0, committed=None
    ) -> None:
        self.add(
            "decode_spans",
            request_id=request_id,
            replica=replica,
            token_ns=token,
            first_iteration=first,
            scheduled=scheduled,
            committed=scheduled if committed is None else committed,
        )


@dataclass
class _Live:
    request_id: int
    arrival: int
    prompt: int
    outputs: int
    abort: int | None
    admitted: int = -1
    first_token: int = -1
    computed: int = 0
    token_times: list[int] = field(default_factory=list)  # of output tokens, some in flight
    token_ns: int = -1
    span_first: int = -1
    retractions: int = 0
    finish: int = -1
    reason: FinishReason = FinishReason.NONE

    @property
    def made(self) -> int:
        return len(self.token_times)

    @property
    def known(self) -> int:
        return self.prompt + self.made

    def drop_results_after(self, t: int) -> None:
        """What was in flight when the request was sent back or given up is void."""
        self.token_times = [when for when in self.token_times if when <= t]
        self.first_token = self.first_token if self.first_token <= t else -1
        self.token_ns = self.token_ns if self.token_ns <= t else -1


class _RandomReplica:
    """A careless scheduler with random decisions: consistent tables are all that is asked of it."""

    def __init__(self, rng: random.Random, run: HandMadeRun, replica: int, arrivals: list[_Live]):
        self.rng, self.run, self.replica = rng, run, replica
        self.coming, self.waiting, self.prefilling, self.decoding = arrivals, [], [], []
        self.depth = rng.choice((1, 2))
        self.steps: list[Row] = []
        self.iteration = 0

    def simulate(self, max_steps: int) -> None:
        everyone = list(self.coming)
        for _ in range(max_steps):
            if not (self.coming or self.waiting or self.prefilling or self.decoding):
                break
            self._step()
        for live in everyone:
            self._write(live)

    def _step(self) -> None:
        rng, steps = self.rng, self.steps
        plan = max([0, *(s["plan_ns"] for s in steps[-1:])]) + rng.randrange(3)
        if len(steps) >= self.depth:
            plan = max(plan, steps[-self.depth]["end_ns"])
        if not (self.waiting or self.prefilling or self.decoding):
            plan = max(plan, self.coming[0].arrival)
        while self.coming and self.coming[0].arrival <= plan:
            self.waiting.append(self.coming.pop(0))
        self._abort(plan)
        self._retract(plan)
        self._admit(plan)
        start = max([plan + rng.randrange(5), *(s["start_ns"] + s["gpu_ns"] for s in steps[-1:])])
        gpu = rng.randrange(1, 60)
        end = max([start + gpu + rng.randrange(4), *(s["end_ns"] for s in steps[-1:])])
        self._run(plan, start, gpu, end)

    def _admit(self, plan: int) -> None:
        while self.waiting and self.rng.random() < 0.5:
            live = self.waiting.pop(0)
            self.prefilling.append(live)
            event = RequestEvent.RESUME if live.retractions else RequestEvent.ADMIT
            if live.admitted < 0:
                live.admitted = plan
            self._event(plan, live, event)

    def _retract(self, plan: int) -> None:
        for live in list(self.decoding + self.prefilling):
            if self.rng.random() < 0.05:
                live.drop_results_after(plan)
                self._leave(live)
                live.retractions += 1
                live.computed = self.rng.randrange(live.known)
                self.waiting.insert(0, live)
                self._event(plan, live, RequestEvent.RETRACT)

    def _abort(self, plan: int) -> None:
        for live in self.waiting + self.decoding + self.prefilling:
            if live.abort is not None and live.abort <= plan:
                live.drop_results_after(live.abort)
                self._leave(live)
                live.finish, live.reason = live.abort, FinishReason.ABORT

    def _leave(self, live: _Live) -> None:
        for group in (self.waiting, self.prefilling, self.decoding):
            if live in group:
                group.remove(live)
        if live.span_first >= 0:
            scheduled = self.iteration - live.span_first + 1
            committed = sum(when > live.token_ns >= 0 for when in live.token_times)
            self.run.add_span(
                live.request_id, live.token_ns, live.span_first, scheduled, self.replica, committed
            )
            live.span_first = -1

    def _run(self, plan: int, start: int, gpu: int, end: int) -> None:
        step, tokens, decodes = len(self.steps), 0, len(self.decoding)
        if decodes and self.rng.random() < 0.2 and self.prefilling:
            decodes = 0
        decoding = list(self.decoding) if decodes else []
        for live in list(self.prefilling):
            if self.rng.random() < 0.3 and (tokens or decodes):
                continue
            chunk = self.rng.randrange(1, live.known - live.computed + 1)
            self.run.add_item(step, live.request_id, chunk, live.computed, self.replica)
            live.computed += chunk
            tokens += chunk
            if live.computed == live.known:
                self._sampled(live, end)
        if decodes:
            self.iteration += 1
            for live in decoding:
                self._sampled(live, end)
        waiting = len(self.waiting)
        row = {
            "step": step, "replica": self.replica, "plan_ns": plan, "start_ns": start,
            "end_ns": end, "gpu_ns": gpu, "prefill_tokens": tokens, "decode_requests": decodes,
            "decode_tokens": decodes, "decode_iteration": self.iteration if decodes else -1,
            "waiting": waiting, "running": len(self.prefilling) + len(self.decoding),
            "block_reason": self.rng.choice(list(AdmissionBlock)[1:]) if waiting else 0,
        }  # fmt: skip
        self.steps.append(row)
        self.run.add("steps", **row)

    def _sampled(self, live: _Live, end: int) -> None:
        live.token_times.append(end)
        if live.first_token < 0:
            live.first_token = end
        if live in self.prefilling:
            self.prefilling.remove(live)
            self.decoding.append(live)
            live.token_ns, live.span_first = end, self.iteration + 1
        if live.made == live.outputs:
            if self.iteration < live.span_first:
                live.span_first = -1
            self._leave(live)
            live.finish, live.reason = end, FinishReason.LENGTH

    def _event(self, t: int, live: _Live, event: RequestEvent) -> None:
        self.run.add(
            "lifecycle", t_ns=t, replica=self.replica, request_id=live.request_id, event=int(event)
        )

    def _write(self, live: _Live) -> None:
        if live.finish < 0:
            self._leave(live)
        self.run.add(
            "requests",
            request_id=live.request_id,
            replica=self.replica,
            prompt_tokens=live.prompt,
            max_tokens=live.outputs,
            output_tokens=live.made,
            retractions=live.retractions,
            arrival_ns=live.arrival,
            admitted_ns=live.admitted,
            first_token_ns=live.first_token,
            finish_ns=live.finish,
            finish_reason=int(live.reason),
        )


def random_run(seed: int, num_requests: int = 12, num_replicas: int = 2, max_steps: int = 400):
    """A run with chunks, mixed steps, retractions, aborts, overlap; cut off after `max_steps`."""
    rng = random.Random(seed)
    run = HandMadeRun(header(num_replicas))
    arrivals: list[list[_Live]] = [[] for _ in range(num_replicas)]
    t = 0
    for request_id in range(num_requests):
        t += rng.randrange(40)
        abort = t + rng.randrange(300) if rng.random() < 0.15 else None
        live = _Live(request_id, t, rng.randrange(1, 30), rng.randrange(1, 9), abort)
        arrivals[rng.randrange(num_replicas)].append(live)
    for replica, lives in enumerate(arrivals):
        _RandomReplica(rng, run, replica, lives).simulate(max_steps)
    return run
