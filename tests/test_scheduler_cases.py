"""Laws of the scheduler that one small story shows best."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from core_harness import Run

from engine.core.config import SchedulerConfig
from engine.core.enums import AdmissionBlock, FinishReason, RejectReason, TransferStatus
from engine.core.errors import PlanOrderError
from engine.core.plan import OK, StepPlan, StepResult
from engine.core.request import KVHandoff
from engine.core.results import MAX_FAILURES
from engine.core.scheduler import Scheduler
from engine.core.waiting_queue import MAX_BYPASS
from workbench.fuzz.fake_model import Ask

NEVER = 10**6  # stop_after of a text that only max_tokens ends


def config(**changes: Any) -> SchedulerConfig:
    """A small replica with one plan in flight and no prefix cache, unless said otherwise."""
    settled: dict[str, Any] = dict(
        num_pages=64, page_size=1, max_model_len=1000, max_num_batched_tokens=16,
        max_running_requests=4, prefix_cache=False, max_plans_in_flight=1, admission="reserve",
    )  # fmt: skip
    return SchedulerConfig(**settled | changes)


def ask(request_id: int, prompt: int = 4, max_tokens: int = 8, **facts: Any) -> Ask:
    """A request whose prompt nobody shares."""
    facts = {"stop_after": NEVER} | facts
    return Ask(request_id, (100 + request_id,) * prompt, max_tokens, **facts)


def story(settings: SchedulerConfig, asks: list[Ask]) -> Run:
    """A run that goes by hand; its requests have been sent."""
    run = Run(0, settings, asks)
    for one in asks:
        run.send(one)
    return run


def step(run: Run) -> StepPlan:
    """Plan and commit."""
    plan = run.plan()
    assert plan is not None
    run.commit()
    return plan


def ids(plan: StepPlan) -> list[int]:
    """The requests in a step."""
    return [item.request.request_id for item in plan.items()]


# ---- what never fits, what just fits -------------------------------------------------------------


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


# ---- steps ---------------------------------------------------------------------------------------


def test_decodes_take_the_budget_first_and_chunks_share_the_rest() -> None:
    """In `mixed` mode a step decodes everybody and fills up with chunks, oldest prompt first."""
    run = story(config(max_num_batched_tokens=6), [ask(0, 2)])
    step(run)
    run.send(ask(1, 7))
    run.send(ask(2, 7))
    chunks = [
        [
            (p.request.request_id, p.num_tokens, p.context_tokens, p.samples)
            for p in step(run).prefills
        ]
        for _ in range(3)
    ]
    assert chunks == [[(1, 5, 0, False)], [(1, 2, 5, True), (2, 3, 0, False)], [(2, 4, 3, True)]]
    assert len(step(run).decode_members()) == 3


def test_prefill_first_lets_decodes_wait() -> None:
    """In `prefill_first` mode nobody decodes while there is anything to prefill."""
    run = story(config(mode="prefill_first", max_num_batched_tokens=6), [ask(0, 2)])
    step(run)
    run.send(ask(1, 7))
    assert [bool(step(run).decode_requests) for _ in range(4)] == [False, False, True, True]


def test_a_step_never_holds_more_requests_than_may_run() -> None:
    """Requests that one step begins and ends count against max_running_requests in that step."""
    settings = config(max_num_batched_tokens=64)
    run = story(settings, [ask(i, 1, 1) for i in range(10)])
    first = run.plan()
    assert first is not None
    assert len(first.items()) == settings.max_running_requests
    assert first.block_reason == AdmissionBlock.RUNNING_LIMIT


def test_a_verify_step_that_runs_out_of_pages_still_counts_its_samples() -> None:
    """A step that verifies only some requests, for want of pages, has their rows of logits."""
    settings = config(
        num_pages=13, num_speculative_tokens=3, admission="estimate",
        schedule_conservativeness=0.01, max_plans_in_flight=2,
    )  # fmt: skip
    run = story(settings, [ask(0, 2, 12), ask(1, 2, 3), ask(2, 2, 3)])
    cut = 0  # steps without some of those that verify
    while run.scheduler.has_work:
        plan = run.plan()
        if plan is not None:
            cut += 0 < len(plan.verifies) < len(run.scheduler.book.verifying)
            assert plan.sampled_tokens == plan.decode_tokens + sum(p.samples for p in plan.prefills)
        if plan is None or len(run.device.in_flight) == 2:
            run.commit()
    assert cut
    run.check_ends()


# ---- why the head waits --------------------------------------------------------------------------


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


# ---- order ---------------------------------------------------------------------------------------


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


# ---- ends ----------------------------------------------------------------------------------------


def test_a_text_that_ends_at_its_limit_is_said_to_have_stopped() -> None:
    """STOP beats LENGTH when both hold, with and without speculation, at the first token too."""
    for drafts in (0, 3):
        for length in (1, 2, 5):
            settings = config(num_speculative_tokens=drafts)
            run = story(settings, [ask(0, 3, length, stop_after=length)])
            while run.scheduler.has_work:
                step(run)
            assert run.requests[0].finish_reason == FinishReason.STOP
            run.check_ends()


def test_an_abort_reports_a_request_once() -> None:
    """Aborting is answered with the request the first time, with None ever after."""
    run = story(config(), [ask(0)])
    assert run.scheduler.abort(0, 1) is run.requests[0]
    assert run.scheduler.abort(0, 2) is None
    assert run.scheduler.abort(77, 2) is None


@pytest.mark.parametrize("mode", ["mixed", "prefill_first"])
def test_an_abort_leaves_the_pages_of_a_step_in_flight_alone(mode: str) -> None:
    """A request that joined but has not decoded keeps its pages till its prompt is back."""
    settings = config(mode=mode, max_plans_in_flight=2, max_num_batched_tokens=4)
    run = story(settings, [ask(0, 4), ask(1, 4)])
    run.plan()
    if mode == "mixed":  # no pages for a decode: the second plan only brings 0 into the batch
        taken = run.scheduler.kv.pool.alloc(run.scheduler.kv.pool.free_pages)
        assert run.scheduler.plan(1) is None
        run.scheduler.kv.pool.free(taken)
    else:
        run.plan()
    assert 0 in run.scheduler.book.batch.members
    run.abort(0)  # `check` compares with what the device still uses
    assert run.scheduler.kv.has_deferred
    run.commit()
    assert not run.scheduler.kv.has_deferred


def test_a_request_whose_steps_keep_failing_ends_with_an_error() -> None:
    """A failed step is computed again, MAX_FAILURES times at most for one request."""
    run = story(config(), [ask(0)])
    for failures in range(1, MAX_FAILURES + 1):
        assert run.scheduler.has_work
        plan = run.scheduler.plan(failures)
        assert plan is not None
        ended = run.scheduler.commit(plan.plan_id, StepResult(failed=True), failures)
        assert len(ended) == (failures == MAX_FAILURES)
    assert run.requests[0].finish_reason == FinishReason.ERROR
    assert run.scheduler.kv.pool.free_pages == run.config.num_pages


@pytest.mark.parametrize("outputs", [0, 1, 5])
def test_a_broken_row_ends_its_request_alone(outputs: int) -> None:
    """It ends with an error and without the token, shares no KV since its last good prompt."""
    run = story(config(prefix_cache=True, page_size=2), [ask(0, 6, 20), ask(1, 6, 20)])
    for _ in range(outputs):
        step(run)
    plan = run.plan()
    assert plan is not None
    run.device.run_some(1)
    result = run.device.in_flight[0].result
    assert result is not None
    row = [r.request_id for r, _ in plan.sampling_requests()].index(0)
    ids = [-1 if at == row else i for at, i in enumerate(result.token_ids or ())]
    run.device.take()
    cached = run.scheduler.kv.cached_pages
    ended = run.scheduler.commit(plan.plan_id, replace(result, token_ids=ids, broken=[0]), run.now)
    assert ended == [run.requests[0]]
    assert run.requests[0].finish_reason == FinishReason.ERROR
    assert run.requests[0].committed_outputs == outputs
    assert run.requests[0].tokens.ids(0, 6 + outputs).tolist() == run.asks[0].text(outputs)
    assert len(run.requests[0].tokens) == 6 + outputs
    published = 3 if outputs else 0  # pages of the prompt
    assert run.scheduler.kv.cached_pages == cached + published
    while run.scheduler.has_work:
        step(run)
    assert run.requests[1].finish_reason == FinishReason.LENGTH
    run.broken, run.ended[0] = {0}, 1
    run.check_ends()


# ---- hand-off ------------------------------------------------------------------------------------


def test_a_received_request_of_one_token_ends_when_its_kv_is_here() -> None:
    """Its only token came with it; its place and its pages are free at once."""
    run = story(config(), [ask(0, 4, 1, handoff=KVHandoff.RECEIVE)])
    plan = run.plan()
    assert plan is not None
    (transfer,) = plan.transfers
    request = run.scheduler.transfer_done(transfer.transfer_id, TransferStatus.OK, 1)
    assert request is run.requests[0]
    assert request.finish_reason == FinishReason.LENGTH
    run.check()
    assert run.scheduler.kv.pool.free_pages == run.config.num_pages


def test_pages_that_are_being_sent_are_neither_evicted_nor_counted() -> None:
    """Abort a request while its KV leaves: its cached pages stay until the transfer has ended."""
    settings = config(num_pages=8, prefix_cache=True)
    run = story(settings, [ask(0, 6, 2, handoff=KVHandoff.SEND)])
    step(run)
    plan = run.plan()
    assert plan is not None
    (transfer,) = plan.transfers
    run.commit()
    run.abort(0)
    assert run.scheduler.kv.available_pages == 2
    run.send(ask(1, 4, 2))
    assert run.plan() is None  # 4 pages are asked for
    run.scheduler.transfer_done(transfer.transfer_id, TransferStatus.OK, 9)
    run.check()
    assert ids(step(run)) == [1]


def test_kv_that_is_received_takes_no_tokens_of_a_step() -> None:
    """Without chunked prefill, a prompt computed elsewhere need not fit beside the decodes."""
    run = story(config(chunked_prefill=False), [ask(0, 2)])
    step(run)
    run.send(ask(1, 16, 2, handoff=KVHandoff.RECEIVE))
    assert len(step(run).transfers) == 1


@pytest.mark.parametrize("direction", [KVHandoff.SEND, KVHandoff.RECEIVE])
def test_late_and_repeated_notices_change_nothing(direction: KVHandoff) -> None:
    """A transfer ends once: at its notice or at its deadline, whichever is first."""
    run = story(config(transfer_timeout_ns=10), [ask(0, 4, 3, handoff=direction)])
    while (plan := step(run)) and not plan.transfers:
        pass
    (transfer,) = plan.transfers
    assert run.scheduler.next_wakeup() == transfer.deadline_ns
    run.now = transfer.deadline_ns - 1
    assert run.plan() is None
    run.now = transfer.deadline_ns
    again = run.plan()
    assert run.scheduler.next_wakeup() is None
    if direction == KVHandoff.SEND:
        assert run.requests[0].finish_reason == FinishReason.ERROR
    else:
        assert again is not None
        assert ids(again) == [0]  # computed here instead
    before = run.scheduler.kv.pool.free_list()
    for status in TransferStatus:
        assert run.scheduler.transfer_done(transfer.transfer_id, status, run.now) is None
    assert run.scheduler.kv.pool.free_list() == before
    run.check()


# ---- what a driver may not do --------------------------------------------------------------------


def test_plans_come_back_in_order() -> None:
    """Committing another plan than the oldest, or planning too deep, is an error and no change."""
    run = story(config(max_plans_in_flight=2), [ask(0)])
    with pytest.raises(PlanOrderError, match="the oldest in flight is None"):
        run.scheduler.commit(0, StepResult(), 0)
    run.plan()
    run.plan()
    with pytest.raises(PlanOrderError, match="2 plans are in flight"):
        run.scheduler.plan(0)
    with pytest.raises(PlanOrderError, match="the oldest in flight is 0"):
        run.scheduler.commit(1, StepResult(), 0)
    run.commit()
    run.commit()


def test_members_are_read_before_the_batch_changes() -> None:
    """A plan's members cannot be read for the first time when others have joined or left."""
    run = story(config(), [ask(0), ask(1, 4, 2)])
    step(run)
    plan = run.scheduler.plan(1)
    assert plan is not None
    run.scheduler.abort(1, 1)
    with pytest.raises(PlanOrderError, match="must be read before"):
        plan.decode_members()


def good_result(plan: StepPlan) -> StepResult:
    """A result that fits a plan."""
    return StepResult(
        token_ids=[0] * len(plan.sampling_requests()),
        verified=[1] * len(plan.verifies),
        verified_ids=[[0]] * len(plan.verifies),
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"token_ids": [1, 2, 3, 4, 5]},
        {"verified": []},
        {"verified": [5]},
        {"verified": [-1]},
        {"verified_ids": [[0, 0]]},
        {"verified_ids": []},
    ],
)
def test_a_result_that_does_not_fit_changes_nothing(bad: dict[str, Any]) -> None:
    """ValueError, and the right result can still be committed and the run replayed."""
    run = story(config(num_speculative_tokens=3), [ask(0)])
    step(run)
    plan = run.scheduler.plan(9)
    assert plan is not None
    calls = len(run.journal.to_array())
    with pytest.raises(ValueError, match="plan 1|kept"):
        run.scheduler.commit(plan.plan_id, replace(good_result(plan), **bad), 9)
    assert len(run.journal.to_array()) == calls
    run.scheduler.commit(plan.plan_id, good_result(plan), 9)
    assert run.requests[0].committed_outputs == 2


def test_the_end_of_a_late_send_is_told() -> None:
    """Whoever drives a scheduler hears of each end from one of its calls, once."""
    scheduler = Scheduler(config(max_plans_in_flight=1, transfer_timeout_ns=10))
    request = Ask(0, (1, 2), 9, 99, handoff=KVHandoff.SEND).request()
    scheduler.add(request, 0)
    for now in (1, 3):
        plan = scheduler.plan(now)
        assert plan is not None
        assert scheduler.commit(plan.plan_id, OK, now + 1) == []
        assert scheduler.take_ended() == []
    assert scheduler.plan(100) is None
    assert request.finish_reason == FinishReason.ERROR
    assert scheduler.take_ended() == [request]
    assert scheduler.take_ended() == []
    assert scheduler.transfer_done(0, TransferStatus.OK, 101) is None
