"""Who is rejected, who enters and who waits for what, each as a small story."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scheduler_stories import NEVER, ask, config, ids, step, story

from engine.core.enums import AdmissionBlock, RejectReason, TransferStatus
from engine.core.request import KVHandoff
from engine.core.waiting_queue import MAX_BYPASS
from workbench.fuzz.fake_model import Ask


@pytest.mark.parametrize("page_size", [1, 2, 4, 16, 64])
def test_a_request_may_fill_the_pool_to_the_last_slot(page_size: int) -> None:
    """The last token needs no KV: prompt + max_tokens - 1 slots fit, one more is rejected."""
    settings = config(num_pages=3, page_size=page_size)
    slots = 3 * page_size
    run = story(settings, [ask(0, 1, slots), ask(1, 1, slots + 1), ask(2, slots, 1)])
    assert run.requests[1].reject_reason == RejectReason.EXCEEDS_KV_POOL
    while run.scheduler.has_work:
        step(run)
    run.check_ends()


@pytest.mark.parametrize(
    ("changes", "prompt", "max_tokens", "reason"),
    [
        ({"max_model_len": 12}, 4, 8, RejectReason.NONE),
        ({"max_model_len": 11}, 4, 8, RejectReason.EXCEEDS_CONTEXT),
        ({"chunked_prefill": False}, 16, 2, RejectReason.NONE),
        ({"chunked_prefill": False}, 17, 2, RejectReason.EXCEEDS_STEP_BUDGET),
        ({"chunked_prefill": False, "max_prefill_tokens": 9}, 10, 2,
         RejectReason.EXCEEDS_STEP_BUDGET),
        ({"chunked_prefill": True, "max_prefill_tokens": 9}, 30, 2, RejectReason.NONE),
    ],
)  # fmt: skip
def test_the_reason_to_reject_is_the_limit_that_is_exceeded(
    changes: dict[str, Any], prompt: int, max_tokens: int, reason: RejectReason
) -> None:
    """A request is rejected exactly when a limit is exceeded, and the reason names that limit."""
    run = story(config(**changes), [ask(0, prompt, max_tokens)])
    assert run.requests[0].reject_reason == reason
    assert run.scheduler.has_work == (reason == RejectReason.NONE)


def test_an_id_is_in_use_until_its_request_has_ended() -> None:
    """Two live requests cannot have one id."""
    run = story(config(), [ask(0)])
    with pytest.raises(ValueError, match="request id 0 is in use"):
        run.scheduler.add(ask(0).request(), 0)


def test_an_id_that_is_free_again_starts_from_nothing() -> None:
    """Limits, results and transfers of an earlier request of that id do not touch the new one."""
    run = story(config(), [ask(0, 2, 6)])
    for _ in range(3):
        step(run)
    run.abort(0)
    run.send(ask(0, 2, 40))
    while run.scheduler.has_work:
        step(run)
    assert run.requests[0].committed_outputs == 40

    run = story(config(), [ask(0, 2, 6, handoff=KVHandoff.SEND)])
    while not (plan := step(run)).transfers:
        pass
    run.abort(0)
    run.send(ask(0, 2, 6, handoff=KVHandoff.SEND))
    step(run)
    late = plan.transfers[0].transfer_id
    assert run.scheduler.transfer_done(late, TransferStatus.FAILED, 9) is None
    assert run.scheduler.has_work


def test_the_head_waits_for_tokens() -> None:
    """TOKEN_BUDGET: the step is full; PREFILL_LIMIT: only its prefill tokens are."""
    run = story(config(max_num_batched_tokens=4), [ask(0, 4), ask(1, 4)])
    assert step(run).block_reason == AdmissionBlock.TOKEN_BUDGET
    run = story(config(max_prefill_tokens=4), [ask(0, 4), ask(1, 4)])
    assert step(run).block_reason == AdmissionBlock.PREFILL_LIMIT


def test_the_head_waits_for_a_place() -> None:
    """RUNNING_LIMIT: as many requests run as may."""
    run = story(config(max_running_requests=1), [ask(0), ask(1)])
    assert step(run).block_reason == AdmissionBlock.RUNNING_LIMIT


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_pages": 15}, AdmissionBlock.KV_RESERVED),
        ({"num_pages": 15, "admission": "estimate"}, AdmissionBlock.KV_RESERVED),
        ({"num_pages": 22}, AdmissionBlock.NONE),
        ({"num_pages": 11}, AdmissionBlock.KV_RESERVED),
        ({"num_pages": 11, "admission": "estimate"}, AdmissionBlock.KV_RESERVED),
    ],
)
def test_the_head_waits_for_pages_that_others_will_need(
    changes: dict[str, Any], reason: AdmissionBlock
) -> None:
    """KV_RESERVED: the prompt would fit now, but not with what running requests may still write."""
    run = story(config(**changes), [ask(0, 4, 8), ask(1, 4, 8)])
    assert step(run).block_reason == reason


def test_the_head_waits_for_pages() -> None:
    """KV_PAGES: not even the prompt fits beside what runs."""
    run = story(config(num_pages=16, admission="estimate"), [ask(0, 10, 4), ask(1, 7, 2)])
    assert step(run).block_reason == AdmissionBlock.KV_PAGES


def test_nobody_enters_in_the_step_that_sends_somebody_back() -> None:
    """RETRACTION: when pages run out, what becomes free is for those who run."""
    settings = config(num_pages=10, admission="estimate", schedule_conservativeness=0.01)
    run = story(settings, [ask(0, 2, 8), ask(1, 2, 6), ask(2, 2, 1)])
    reasons = {}
    while run.scheduler.has_work:
        plan = step(run)
        if plan.retracted:
            reasons[plan.plan_id] = plan.block_reason
    assert set(reasons.values()) == {AdmissionBlock.RETRACTION}
    run.check_ends()


def test_pages_that_a_decode_gives_up_go_to_the_prompt_that_waits_for_them() -> None:
    """A call of `plan` that retracts somebody lets somebody else compute."""
    settings = config(
        num_pages=10, admission="estimate", schedule_conservativeness=0.01, max_prefill_tokens=1
    )
    run = story(settings, [ask(0, 2, 7)])
    while not run.scheduler.book.batch.members:
        step(run)
    run.send(ask(1, 5, 1, priority=1))
    while run.scheduler.kv.pool.free_pages:
        step(run)
    assert run.scheduler.book.prefilling
    run.scheduler.reconfigure(replace(settings, mode="prefill_first"), run.now)
    assert ids(step(run)) == [1]
    assert run.requests[0].retractions == 1
    while run.scheduler.has_work:
        step(run)
    run.check_ends()


def test_an_urgent_request_takes_the_place_of_a_less_urgent_one() -> None:
    """With `priority`, a running request gives way to a more urgent one, not to an equal one."""
    run = story(config(policy="priority", max_running_requests=1), [ask(0, priority=1)])
    step(run)
    run.send(ask(1, priority=1))
    assert ids(step(run)) == [0]
    run.send(ask(2, priority=2))
    assert ids(step(run)) == [2]
    assert (run.requests[0].retractions, run.requests[1].retractions) == (1, 0)
    while run.scheduler.has_work:
        step(run)
    run.check_ends()
    ends = [run.requests[i].finish_ns for i in (2, 0, 1)]
    assert ends == sorted(ends)


def test_kv_on_its_way_does_not_shield_less_urgent_requests() -> None:
    """With `priority`, places that wait for KV count as taken when an urgent request comes."""
    settings = config(policy="priority", max_running_requests=2)
    run = story(settings, [ask(0, handoff=KVHandoff.RECEIVE), ask(1)])
    step(run)
    assert run.scheduler.book.running == 2
    run.send(ask(2, priority=1))
    assert ids(step(run)) == [2]
    assert run.requests[1].retractions == 1


def test_priority_is_for_the_queue_when_the_policy_says_so() -> None:
    """fcfs admits by arrival whatever the priorities; `priority` admits the most urgent first."""
    asks = [ask(0, priority=0), ask(1, priority=2), ask(2, priority=1)]
    orders = {}
    for policy in ("fcfs", "priority"):
        run = story(config(policy=policy, max_num_batched_tokens=4), asks)
        orders[policy] = [ids(step(run))[-1] for _ in range(1)]
    assert orders == {"fcfs": [0], "priority": [1]}


def test_longest_prefix_first_passes_nobody_for_ever() -> None:
    """With `lpm` the oldest request is overtaken by MAX_BYPASS later ones at most."""
    stem = (1, 2, 3, 4)
    settings = config(policy="lpm", prefix_cache=True, max_running_requests=1, num_pages=512)
    run = story(settings, [Ask(0, stem, 1, NEVER)])
    step(run)
    cold = Ask(1, (9, 9, 9, 9), 1, NEVER)
    warm = [Ask(2 + i, (*stem[:3], 5 + i), 1, NEVER) for i in range(MAX_BYPASS + 20)]
    for one in [cold, *warm]:
        run.send(one)
    overtakers = 0
    while run.requests[1].finish_ns < 0:
        overtakers += 1 not in ids(step(run))
    assert overtakers == MAX_BYPASS
