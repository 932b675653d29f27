"""What a step holds, and what a driver may not do with it, each as a small story."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scheduler_stories import ask, config, step, story

from engine.core.enums import AdmissionBlock
from engine.core.errors import PlanOrderError
from engine.core.plan import StepPlan, StepResult


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
