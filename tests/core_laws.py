"""Laws of single plans and of the record of a finished run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from core_harness import Run

from engine.core.enums import (
    AdmissionBlock,
    FinishReason,
    MemoryOp,
    RequestEvent,
    RequestStatus,
    RetractReason,
)
from engine.core.plan import StepPlan
from engine.core.request import Request

Columns = dict[str, np.ndarray]


def rank(run: Run, request: Request) -> tuple[int, int]:
    """A request's place in a queue that is ordered by policy; smaller goes first."""
    urgent = request.priority if run.config.policy == "priority" else 0
    return -urgent, request.sequence


# ---- laws of one plan ----------------------------------------------------------------------------


def within_limits(run: Run, plan: StepPlan) -> None:
    """A step keeps to the token budget, the prefill limit and max_running_requests."""
    config = run.config
    assert plan.prefill_tokens + plan.decode_tokens <= config.max_num_batched_tokens
    assert plan.prefill_tokens <= config.prefill_budget
    assert len(plan.items()) <= config.max_running_requests
    assert run.scheduler.book.running <= config.max_running_requests
    assert all(1 <= v.num_tokens <= 1 + config.num_speculative_tokens for v in plan.verifies)
    assert all(item.num_tokens >= 1 for item in plan.prefills)
    assert plan.items() or plan.transfers


def described_truly(run: Run, plan: StepPlan) -> None:
    """The sums of a plan are those of its rows, its counts those of the scheduler."""
    kinds: list[list[tuple[int, int]]] = [[], [], []]
    for item in plan.items():
        kinds[item.kind].append((item.num_tokens, item.context_tokens))
    prefills, decodes = kinds[0], kinds[1] + kinds[2]
    assert plan.prefill_tokens == sum(n for n, _ in prefills)
    assert plan.prefill_context == sum(context for _, context in prefills)
    assert plan.prefill_pairs == sum(c + i + 1 for n, c in prefills for i in range(n))
    assert plan.prefill_max_context == max((n + c for n, c in prefills), default=0)
    assert (plan.decode_requests, plan.decode_tokens) == (len(decodes), sum(n for n, _ in decodes))
    assert plan.decode_context == sum(n + context for n, context in decodes)
    assert plan.decode_max_context == max((n + context for n, context in decodes), default=0)
    samples = sum(item.samples for item in plan.prefills)
    assert plan.sampled_tokens == samples + plan.decode_tokens
    assert len(plan.sampling_requests()) == samples + len(kinds[1])
    sizes = [n for n in run.config.cuda_graph_batch_sizes if n >= len(decodes)]
    graph = sizes[0] if sizes and decodes and not prefills else 0
    assert plan.graph_batch == graph
    kv, book = run.scheduler.kv, run.scheduler.book
    assert (plan.free_pages, plan.cached_pages) == (kv.pool.free_pages, kv.cached_pages)
    assert (plan.waiting, plan.running) == (len(list(book.waiting)), book.running)


def fed_from_the_newest_source(run: Run, plan: StepPlan) -> None:
    """`feeds_from` is in flight, samples, and is no older than any row's last token."""
    others = [launched.plan for launched in run.device.in_flight[:-1]]
    samplers = [p.plan_id for p in others if p.sampled_tokens]
    if not plan.decode_requests or not samplers:
        assert plan.feeds_from == -1
        return
    assert plan.feeds_from == samplers[-1]
    rows = {(item.request.request_id, item.epoch) for item in plan.items()[len(plan.prefills) :]}
    for other in others:
        sampled = {(r.request_id, epoch) for r, epoch in other.sampling_requests()}
        sampled |= {(v.request.request_id, v.epoch) for v in other.verifies}
        assert other.plan_id <= plan.feeds_from or not sampled & rows


def prompts_are_whole(run: Run, plan: StepPlan) -> None:
    """Without chunked prefill a prompt runs in one step, if any step can hold it."""
    for item in plan.prefills:
        left = item.request.known_tokens - item.context_tokens
        if not run.config.chunked_prefill and left <= run.config.prefill_budget:
            assert item.samples


def mode_is_kept(run: Run, plan: StepPlan) -> None:
    """`prefill_first` never mixes; `mixed` never lets a request miss a step with prefill."""
    if run.config.mode == "prefill_first":
        assert not (plan.prefills and plan.decode_requests)
        return
    batch = run.scheduler.book.batch.members
    in_step = {request.request_id for request, _ in plan.decode_members()}
    if plan.prefills:
        assert in_step == set(batch)


def order_is_kept(run: Run, plan: StepPlan) -> None:
    """fcfs and priority admit nobody before somebody who goes first."""
    if run.config.policy == "lpm":
        return
    retractions = run.before.retractions
    after = {r.request_id: r for r in run.scheduler.book.waiting}
    left = [r for r in after.values() if retractions[r.request_id] == r.retractions]
    admitted = [r for r in run.before.waiting if r.request_id not in after]
    for request in admitted:
        assert all(rank(run, request) < rank(run, other) for other in left)


def retraction_spares_the_oldest(run: Run, plan: StepPlan) -> None:
    """The oldest of the most urgent running requests is retracted only for a more urgent one."""
    running = run.before.running
    if not running:
        return
    keep = min(running, key=lambda r: (-r.priority, r.sequence))
    others = [run.requests[i] for i in run.before.retractions]
    urgent = max((r.priority for r in others if r not in running), default=0)
    if keep.retractions != run.before.retractions[keep.request_id]:
        assert run.config.policy == "priority"
        assert urgent > keep.priority


def retraction_waits_for_results(run: Run, plan: StepPlan) -> None:
    """Running requests are sent back for pages or priority only when no step is in flight."""
    before = run.before.retractions
    if any(r.retractions != before[r.request_id] for r in run.before.running):
        assert len(run.device.in_flight) == 1  # this plan


def block_reason_is_true(run: Run, plan: StepPlan) -> None:
    """The stated reason why the head of the queue waits is one that holds."""
    config, book, reason = run.config, run.scheduler.book, plan.block_reason
    if not len(book.waiting):
        assert reason == AdmissionBlock.NONE
        return
    if reason == AdmissionBlock.NONE:  # decodes wait for results, or were sent back afterwards
        assert plan.retracted or not plan.items()
    available = run.scheduler.kv.available_pages
    left = config.max_num_batched_tokens - plan.decode_tokens * (config.mode == "mixed")
    capped = config.max_prefill_tokens is not None and config.max_prefill_tokens < left
    left = min(left, config.max_prefill_tokens or left) - plan.prefill_tokens
    if reason == AdmissionBlock.RUNNING_LIMIT:
        drained = len(book.draining.get(plan.plan_id, ()))
        assert book.running + drained >= config.max_running_requests or plan.retracted
    elif reason in (AdmissionBlock.TOKEN_BUDGET, AdmissionBlock.PREFILL_LIMIT):
        assert left == 0 or not config.chunked_prefill
        assert (reason == AdmissionBlock.PREFILL_LIMIT) == capped
    elif reason == AdmissionBlock.RETRACTION:
        assert plan.retracted > 0
    elif reason == AdmissionBlock.KV_PAGES and book.prefilling:
        assert available == 0 or not config.chunked_prefill
    elif reason == AdmissionBlock.KV_PAGES and not plan.retracted:
        assert max(r.known_tokens for r in book.waiting) > available * config.page_size


PLAN_LAWS: Sequence[Callable[[Run, StepPlan], None]] = (
    within_limits,
    described_truly,
    fed_from_the_newest_source,
    prompts_are_whole,
    mode_is_kept,
    order_is_kept,
    retraction_spares_the_oldest,
    retraction_waits_for_results,
    block_reason_is_true,
)


# ---- laws of a finished run's record -------------------------------------------------------------

_E = RequestEvent
_NEXT = {
    _E.ARRIVE: {_E.ADMIT, _E.FINISH},
    _E.ADMIT: {_E.FIRST_TOKEN, _E.RETRACT, _E.AWAIT_KV, _E.FINISH},
    _E.AWAIT_KV: {_E.TRANSFER_DONE, _E.FINISH},
    _E.TRANSFER_DONE: {_E.FIRST_TOKEN, _E.RETRACT, _E.FINISH},
    _E.FIRST_TOKEN: {_E.HOLD_KV, _E.RETRACT, _E.FINISH},
    _E.HOLD_KV: {_E.TRANSFER_DONE, _E.FINISH},
    _E.RETRACT: {_E.RESUME, _E.FINISH},
    _E.RESUME: {_E.FIRST_TOKEN, _E.RETRACT, _E.HOLD_KV, _E.FINISH},
    _E.FINISH: set(),
    _E.REJECT: set(),
}


def rows_of(table: Columns) -> list[dict[str, int]]:
    """The rows of a table."""
    names = list(table)
    columns = [table[name].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def check_record(run: Run) -> None:
    """What the events say is what happened, and each request has one end and nothing after it."""
    tables = run.log.tables()
    lives: dict[int, list[dict[str, int]]] = {i: [] for i in run.requests}
    for row in rows_of(tables["lifecycle"]):
        lives[row["request_id"]].append(row)
    ends = Counter(tables["requests"]["request_id"].tolist())
    assert ends == Counter(run.requests.keys())
    for row in rows_of(tables["requests"]):
        _check_life(run.requests[row["request_id"]], row, lives[row["request_id"]])
    _check_spans(run, rows_of(tables["decode_spans"]))
    _check_memory(run, rows_of(tables["memory"]))
    life, memory = tables["lifecycle"], tables["memory"]
    admitted = np.isin(life["event"], [_E.ADMIT, _E.RESUME])
    assert run.totals["hit_tokens"] == life["a"][admitted].sum()
    retracted = run.totals["retracted"] + run.scheduler.book.retracted
    assert retracted == (life["event"] == _E.RETRACT).sum()
    evicted = memory["num_pages"][memory["op"] == MemoryOp.EVICT].sum()
    assert run.totals["evicted_pages"] + run.scheduler.kv.evicted_pages == evicted


def _check_life(request: Request, row: dict[str, int], life: list[dict[str, int]]) -> None:
    events = [event["event"] for event in life]
    count = Counter(events)
    for before, after in pairwise(events):
        assert after in _NEXT[RequestEvent(before)], (request, events)
    assert events[0] in (_E.ARRIVE, _E.REJECT)
    assert events[-1] in (_E.FINISH, _E.REJECT)
    assert max(count[_E.ADMIT], count[_E.FIRST_TOKEN]) <= 1
    assert count[_E.RETRACT] == row["retractions"] == request.retractions
    assert count[_E.RESUME] in (count[_E.RETRACT], count[_E.RETRACT] - 1)
    assert row["output_tokens"] == request.committed_outputs
    assert (row["output_tokens"] > 0) == (row["first_token_ns"] >= 0) == (_E.FIRST_TOKEN in events)
    assert row["finish_reason"] == request.finish_reason != FinishReason.NONE
    assert request.status == RequestStatus.FINISHED
    if events[-1] == _E.FINISH:
        assert (life[-1]["a"], life[-1]["b"]) == (row["finish_reason"], row["output_tokens"])
    else:
        assert life[-1]["a"] == row["reject_reason"] > 0
    times = [row["arrival_ns"], row["admitted_ns"], row["first_token_ns"], row["finish_ns"]]
    known = [t for t in times if t >= 0]
    assert known == sorted(known)
    assert row["finish_ns"] == life[-1]["t_ns"]


def _check_spans(run: Run, spans: list[dict[str, int]]) -> None:
    """Without speculation every output is the end of a prefill or a decode of some span."""
    if run.config.num_speculative_tokens:
        return
    outputs: Counter[int] = Counter()
    for span in spans:
        assert 0 <= span["committed"] <= span["scheduled"]
        outputs[span["request_id"]] += span["committed"] + (span["token_ns"] >= 0)
    for request_id, request in run.requests.items():
        assert outputs[request_id] == request.committed_outputs, request


def _check_memory(run: Run, rows: list[dict[str, int]]) -> None:
    """Every page is given by its owner: from the free list to a request, to the cache, and back."""
    owner: dict[int, int] = {}
    for row in rows:
        for page in range(row["start_page"], row["start_page"] + row["num_pages"]):
            if row["op"] == MemoryOp.ALLOC:
                assert page not in owner
                owner[page] = row["owner"]
            elif row["op"] == MemoryOp.CACHE:
                assert owner[page] >= 0 > row["owner"]
                owner[page] = -1
            else:
                assert owner.pop(page) == row["owner"]
    assert not owner


def retract_reasons(run: Run) -> set[RetractReason]:
    """Why requests were sent back in this run."""
    life = run.log.tables()["lifecycle"]
    return {RetractReason(b) for b in life["b"][life["event"] == _E.RETRACT].tolist()}
