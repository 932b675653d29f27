"""A scheduler that gets other settings while it runs keeps its books, promises and journal."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from engine.core.config import UNCHANGEABLE, SchedulerConfig
from engine.core.enums import FinishReason, RejectReason, RequestStatus
from engine.core.invariants import check
from engine.core.journal import Journal, Op, read_calls, replay
from engine.core.plan import OK, StepPlan
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.token_ids import SyntheticTokens

CONFIG = SchedulerConfig(
    num_pages=40, page_size=4, max_model_len=1000, max_num_batched_tokens=40, max_running_requests=8
)


def random_settings(rng: Random, config: SchedulerConfig) -> SchedulerConfig:
    """Other settings of the kind that may change."""
    running = rng.randint(1, 8)
    return replace(
        config,
        max_running_requests=running,
        max_num_batched_tokens=rng.randint(running, 40),
        max_prefill_tokens=rng.choice([None, 5]),
        max_plans_in_flight=rng.randint(1, 4),
        policy=rng.choice(["fcfs", "lpm", "priority"]),
        mode=rng.choice(["mixed", "prefill_first"]),
        admission=rng.choice(["estimate", "reserve"]),
        chunked_prefill=rng.random() < 0.7,
        schedule_conservativeness=rng.choice([0.01, 1 / 3, 2.0]),
        cuda_graph_batch_sizes=tuple(sorted(rng.sample(range(1, 9), rng.randint(0, 3)))),
    )


def lengths(request_id: int) -> tuple[int, int]:
    """Tokens of a prompt that it shares with every third other, and tokens of its own."""
    rng = Random(request_id)
    return rng.randint(1, 15), rng.randint(1, 15)


def text(request_id: int) -> SyntheticTokens:
    """A prompt and an answer of 12 tokens."""
    keys = [request_id % 3, 10 + request_id, 100 + request_id]
    return SyntheticTokens(keys, [*lengths(request_id), 12], 50)


def request(request_id: int) -> Request:
    """A request for up to 12 tokens."""
    rng = Random(-request_id)
    limit, priority = rng.randint(1, 12), rng.randint(0, 2)
    return Request(
        request_id, sum(lengths(request_id)), limit, priority=priority, tokens=text(request_id)
    )


@pytest.mark.parametrize("seed", range(150))
def test_books_and_journal_survive_any_change_at_any_time(seed: int) -> None:
    """Under random changes every recount holds, all requests end and the journal replays."""
    rng, journal = Random(seed), Journal()
    scheduler = Scheduler(random_settings(rng, CONFIG), journal=journal)
    first, requests = scheduler.config, [request(i) for i in range(25)]
    waiting, flying, now = list(requests), list[StepPlan](), 0
    while waiting or scheduler.has_work:
        now += 1
        assert now < 20_000
        if waiting and rng.random() < 0.4:
            scheduler.add(waiting.pop(), now)
        if rng.random() < 0.1:
            scheduler.reconfigure(random_settings(rng, scheduler.config), now)
            check(scheduler)
        if len(scheduler.in_flight) < scheduler.config.max_plans_in_flight and rng.random() < 0.8:
            plan = scheduler.plan(now)
            if plan is not None:
                assert plan.running <= scheduler.config.max_running_requests
                tokens = plan.prefill_tokens + plan.decode_tokens
                assert tokens <= scheduler.config.max_num_batched_tokens
                flying.append(plan)
            check(scheduler)
        if flying and rng.random() < 0.6:
            scheduler.commit(flying.pop(0).plan_id, OK, now)
            check(scheduler)
    for done in requests:
        if done.reject_reason:  # it came while prompts had to run whole
            assert done.reject_reason == RejectReason.EXCEEDS_STEP_BUDGET
        else:
            assert done.finish_reason == FinishReason.LENGTH
            assert done.committed_outputs == done.max_tokens
    assert sum(not done.reject_reason for done in requests) > 5
    calls = list(read_calls(journal.to_array()))
    assert any(call.op is Op.RECONFIGURE for call in calls)
    copy = Scheduler(first)
    replay(iter(calls), copy, text)
    assert copy.config == scheduler.config


def started(config: SchedulerConfig, count: int) -> tuple[Scheduler, list[Request]]:
    """A scheduler with requests of 8 prompt tokens and rising priority; one plan is committed."""
    scheduler = Scheduler(config)
    requests = [Request(i, 8, 20, priority=i) for i in range(count)]
    for each in requests:
        scheduler.add(each, 0)
    commit_plan(scheduler, 1)
    return scheduler, requests


def commit_plan(scheduler: Scheduler, now: int) -> StepPlan:
    plan = scheduler.plan(now)
    assert plan is not None
    scheduler.commit(plan.plan_id, OK, now)
    return plan


def queued(requests: list[Request]) -> list[int]:
    return [each.request_id for each in requests if each.status == RequestStatus.WAITING]


def test_the_queue_follows_the_new_policy() -> None:
    """Under `priority` the most urgent waiting request is next, under `fcfs` again the first."""
    config = replace(CONFIG, max_running_requests=1, max_num_batched_tokens=8)
    scheduler, requests = started(config, 5)
    assert queued(requests) == [1, 2, 3, 4]
    scheduler.reconfigure(replace(config, policy="priority", max_running_requests=2), 2)
    for now in (2, 3, 4):
        commit_plan(scheduler, now)
    assert queued(requests) == [0, 1, 2]
    scheduler.reconfigure(replace(config, max_running_requests=3), 5)
    for now in (5, 6):
        commit_plan(scheduler, now)
    assert queued(requests) == [1, 2]


def test_a_lower_limit_keeps_the_oldest() -> None:
    """Requests above a lower running limit go back at once; the oldest stays and ends first."""
    scheduler, requests = started(replace(CONFIG, max_num_batched_tokens=64), 5)
    assert scheduler.book.running == 5
    scheduler.reconfigure(replace(CONFIG, max_running_requests=1), 2)
    check(scheduler)
    assert scheduler.book.running == 1
    assert sum(each.retractions for each in requests) == 4
    assert requests[4].retractions == 0  # the most urgent counts as the oldest


def test_a_new_estimate_starts_over() -> None:
    """A new conservativeness is what a fresh scheduler would assume, from this iteration on."""
    scheduler, _ = started(CONFIG, 3)
    for now in range(2, 8):
        commit_plan(scheduler, now)
    iteration = scheduler.book.batch.iteration
    assert iteration > 0
    scheduler.reconfigure(replace(CONFIG, schedule_conservativeness=0.5), 9)
    assert scheduler._state.ratio.at(iteration) == Scheduler(scheduler.config)._state.ratio.at(0)
    kept = scheduler._state.ratio
    scheduler.reconfigure(replace(scheduler.config, mode="prefill_first"), 10)
    assert scheduler._state.ratio is kept


@pytest.mark.parametrize("name", UNCHANGEABLE)
def test_memory_and_promises_cannot_change(name: str) -> None:
    """What requests were accepted under stays, and a refused change changes nothing."""
    scheduler, _ = started(CONFIG, 2)
    before = getattr(CONFIG, name)
    others = {True: False, "lru": "lfu"}
    other = others[before] if before in others else before + 1
    with pytest.raises(ValueError, match=name):
        scheduler.reconfigure(replace(CONFIG, policy="lpm", **{name: other}), 2)
    assert scheduler.config == CONFIG
