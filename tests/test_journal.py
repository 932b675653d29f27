"""The input journal: replays of every kind of run, and journals that are wrong."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from core_harness import ALL_FAULTS, NO_FAULTS, Faults, Run, random_run

from engine.core.enums import TransferStatus
from engine.core.invariants import check
from engine.core.journal import Call, Journal, JournalMismatchError, Op, read_calls, replay
from engine.core.plan import StepResult
from engine.core.request import KVHandoff, Request
from engine.core.scheduler import Scheduler
from engine.core.token_ids import TokenBuffer


def tokens_of(run: Run, request_id: int) -> TokenBuffer:
    return run.asks[request_id].buffer()


def replayed(run: Run, data: np.ndarray) -> tuple[Scheduler, Journal, int]:
    """A fresh scheduler that has lived through a journal, its own journal, and its plans."""
    journal = Journal()
    scheduler = Scheduler(run.first_config, journal=journal)
    plans = replay(read_calls(data), scheduler, lambda request_id: tokens_of(run, request_id))
    return scheduler, journal, plans


@pytest.mark.parametrize("block", range(3))
@pytest.mark.parametrize(
    ("faults", "handoffs"),
    [(NO_FAULTS, False), (ALL_FAULTS, False), (ALL_FAULTS, True), (Faults(abort=0.3), True)],
)
def test_a_replay_repeats_every_plan(faults: Faults, handoffs: bool, block: int) -> None:
    """Requests, aborts, failures, verify items, transfers, settings replay to the same plans."""
    for seed in range(block * 10, block * 10 + 10):
        run = random_run(seed, faults, handoffs=handoffs)
        data = run.journal.to_array()
        scheduler, journal, plans = replayed(run, data)
        check(scheduler)
        assert plans == run.plans
        assert journal.to_array().tolist() == data.tolist()
        assert scheduler.next_plan_id == run.scheduler.next_plan_id
        assert scheduler.config == run.scheduler.config


def calls_at(data: np.ndarray) -> list[int]:
    """Where each call starts, and the end."""
    starts, at = [], 0
    while at < len(data):
        starts.append(at)
        at += 3 + int(data[at + 2])
    return [*starts, at]


@pytest.fixture(scope="module")
def recorded() -> Run:
    """A run in which everything happens."""
    return random_run(3, ALL_FAULTS, handoffs=True, count=8)


def test_every_number_of_a_plan_is_compared(recorded: Run) -> None:
    """A journal with any other number in any plan is refused, and both plans are shown."""
    data = recorded.journal.to_array()
    tried = 0
    for start, end in pairwise(calls_at(data)):
        if data[start] != Op.PLAN or end == start + 3:
            continue
        for at in range(start + 3, end):
            wrong = data.copy()
            wrong[at] += 1
            numbers = tuple(wrong[start + 3 : end].tolist())
            with pytest.raises(JournalMismatchError) as caught:
                replayed(recorded, wrong[:end])
            assert str(numbers) in str(caught.value)
            assert str(tuple(data[start + 3 : end].tolist())) in str(caught.value)
            tried += 1
    assert tried > 100


def test_a_plan_that_was_not_made_is_a_mismatch(recorded: Run) -> None:
    """None where a plan was recorded, and a plan where None was, are both refused."""
    journal = Journal()
    scheduler = Scheduler(recorded.first_config, journal=journal)
    assert scheduler.plan(5) is None
    scheduler.add(recorded.asks[1].request(), 6)
    scheduler.plan(7)
    data = journal.to_array()
    replayed(recorded, data)
    first, add, plan, end = calls_at(data)
    with pytest.raises(JournalMismatchError):  # the plan without the request
        replayed(recorded, np.concatenate([data[first:add], data[plan:end]]))
    with pytest.raises(JournalMismatchError):  # None with the request
        replayed(recorded, np.concatenate([data[add:plan], data[first:add]]))


def test_a_journal_that_ends_inside_a_call_is_refused(recorded: Run) -> None:
    """Every cut that is not between two calls is a ValueError that says where."""
    data = recorded.journal.to_array()
    starts = calls_at(data)
    data, whole = data[: starts[40]], set(starts)
    for end in range(len(data)):
        if end in whole:
            list(read_calls(data[:end]))
        else:
            with pytest.raises(ValueError, match="ends inside the call at position"):
                list(read_calls(data[:end]))


@pytest.mark.parametrize("wrong", [[99, 0, 0], [-1, 0, 0], [Op.ABORT, 0, -3], [Op.ABORT, 0, -1]])
def test_calls_that_do_not_exist_are_refused(wrong: list[int]) -> None:
    """An unknown call or a negative count is a ValueError, not an endless journal."""
    with pytest.raises(ValueError, match="not a valid Op|ends inside"):
        list(read_calls(np.array(wrong, np.int64)))


def test_calls_read_back_as_they_were_written() -> None:
    """Times, ids and lists of a commit survive, also empty lists and absent ids."""
    journal = Journal()
    request = Request(7, 5, 6, priority=-2, tenant=3, handoff=KVHandoff.SEND, parent=1,
                      client_wait_ns=9)  # fmt: skip
    journal.add(request, 10)
    journal.abort(7, 11)
    journal.plan(None, 12)
    journal.commit(3, StepResult((7,), [4, 5], (2, 0), [[8, 9], []]), 13)
    journal.commit(4, StepResult(failed=True), 14)
    journal.commit(5, StepResult(token_ids=[-1, 6, -1], broken=[7, 9]), 14)
    journal.advance(20, 15)
    journal.transfer_done(2, TransferStatus.TIMED_OUT, 16)
    assert list(read_calls(journal.to_array())) == [
        Call(Op.ADD, 10, (7, 5, 6, -2, 3, KVHandoff.SEND, 1, 9)),
        Call(Op.ABORT, 11, (7,)),
        Call(Op.PLAN, 12, ()),
        Call(Op.COMMIT, 13, (3, 0, 1, 1, 2, 2, 1, 7, 4, 5, 2, 0, 2, 8, 9, 0)),
        Call(Op.COMMIT, 14, (4, 1, 0, 0, 0, 0, 0)),
        Call(Op.COMMIT_BROKEN, 14, (2, 7, 9, 5, 0, 1, 0, 3, 0, 0, -1, 6, -1)),
        Call(Op.ADVANCE, 15, (20,)),
        Call(Op.TRANSFER_DONE, 16, (2, TransferStatus.TIMED_OUT)),
    ]
