"""How requests end, each as a small story."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scheduler_stories import ask, config, step, story

from engine.core.enums import FinishReason
from engine.core.plan import StepResult
from engine.core.results import MAX_FAILURES


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
