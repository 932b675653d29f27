"""KV that comes from other replicas or goes there, each as a small story."""

from __future__ import annotations

import pytest
from scheduler_stories import ask, config, ids, step, story

from engine.core.enums import FinishReason, TransferStatus
from engine.core.plan import OK
from engine.core.request import KVHandoff
from engine.core.scheduler import Scheduler
from workbench.fuzz.fake_model import Ask


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
