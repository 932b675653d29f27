"""The recount finds what is wrong: one planted fault after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from core_harness import Run

from engine.core.config import SchedulerConfig
from engine.core.invariants import InvariantError, check
from engine.core.plan import OK
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from workbench.fuzz.fake_model import Ask

CONFIG = SchedulerConfig(
    num_pages=40, page_size=2, max_model_len=99, max_num_batched_tokens=8, max_running_requests=3,
    max_plans_in_flight=1,
)  # fmt: skip


def busy() -> Scheduler:
    """Two requests decode, one prompt is half done, one waits; a prefix is cached and locked."""
    asks = [Ask(i, (1, 2, 3, 4, 5 + i, 6), 20, 99) for i in range(2)]
    run = Run(0, CONFIG, asks)
    for ask in asks:
        run.send(ask)
    for _ in range(3):
        run.plan()
        run.commit()
    run.send(Ask(2, (9,) * 15, 9, 99))
    run.send(Ask(3, (8,) * 15, 9, 99))
    run.plan()
    run.commit()
    book = run.scheduler.book
    assert (len(book.batch), len(book.prefilling), len(book.waiting)) == (2, 1, 1)
    check(run.scheduler)
    return run.scheduler


def member(scheduler: Scheduler) -> Request:
    return scheduler.book.requests[1]


def give_back_in_use(s: Scheduler) -> None:
    s.kv.pool.free([member(s).pages[-1]])


def lose_a_page(s: Scheduler) -> None:
    s.kv.pool.alloc(1)


def share_a_page(s: Scheduler) -> None:
    member(s).pages.append(s.book.requests[0].pages[-1])


def lease_a_free_page(s: Scheduler) -> None:
    s.kv.pool.lease(0, s.kv.pool.free_list()[:1], 0, 0)


def miscount_held(s: Scheduler) -> None:
    s.kv.held_pages += 1


def miscount_running(s: Scheduler) -> None:
    s.book.running -= 1


def miscount_promised(s: Scheduler) -> None:
    s.book.promised_pages += 1


def be_in_two_places(s: Scheduler) -> None:
    s.book.joining[1] = member(s)


def be_nowhere(s: Scheduler) -> None:
    s.book.prefilling.clear()


def outlive_the_end(s: Scheduler) -> None:
    del s.book.requests[2]


def wait_with_pages(s: Scheduler) -> None:
    next(iter(s.book.waiting)).pages.append(0)


def write_beyond_the_pages(s: Scheduler) -> None:
    s.book.requests[2].scheduled_tokens += 20


def generate_too_much(s: Scheduler) -> None:
    member(s).committed_outputs = 21


def run_ahead(s: Scheduler) -> None:
    s.book.batch.iteration += 1


def miss_a_page_need(s: Scheduler) -> None:
    for bucket in s.book.batch.crossings.values():
        bucket.pop(1, None)


def forget_a_lock(s: Scheduler) -> None:
    s.kv.cache.unlock(s.book.requests[0].node)


def lock_twice(s: Scheduler) -> None:
    s.kv.cache.lock(s.book.requests[0].node)


def miscount_evictable(s: Scheduler) -> None:
    s.kv.cache.evictable_pages += 1


def miscount_the_depth(s: Scheduler) -> None:
    member(s).cached_depth += 2


def misfile_a_node(s: Scheduler) -> None:
    node = next(node for _, node in s.kv.cache.nodes())
    node.key = bytes(len(node.key))


def shorten_a_node(s: Scheduler) -> None:
    node = next(node for _, node in s.kv.cache.nodes())
    node.key = node.key[:-4]


def prove_too_much(s: Scheduler) -> None:
    next(node for _, node in s.kv.cache.nodes()).proven = 99


def prove_the_end_only(s: Scheduler) -> None:
    node = s.book.requests[0].node
    ids = np.arange(s.config.page_size, dtype=np.int32) + 900
    s.kv.cache.insert(node, ids, s.kv.pool.alloc(1)).node.proven = 1
    node.proven = 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (give_back_in_use, "should have one owner, has"),
        (lose_a_page, "should have one owner, has none"),
        (share_a_page, "should have one owner, has"),
        (lease_a_free_page, "is free although a transfer holds"),
        (miscount_held, "held_pages is"),
        (miscount_running, "running is 2, recounted 3"),
        (miscount_promised, "promised_pages is"),
        (be_in_two_places, "is in "),
        (be_nowhere, "is in "),
        (outlive_the_end, "not alive are still listed"),
        (wait_with_pages, "waits but holds pages"),
        (write_beyond_the_pages, "tokens planned and"),
        (generate_too_much, "generated"),
        (run_ahead, "tokens planned and|should be listed for a page"),
        (miss_a_page_need, "should be listed for a page"),
        (forget_a_lock, "counts 0 locks, has 1"),
        (lock_twice, "counts 2 locks, has 1|counts 3 locks, has 2"),
        (miscount_evictable, "evictable/protected pages are"),
        (miscount_the_depth, "its node says otherwise"),
        (misfile_a_node, "is filed wrongly"),
        (shorten_a_node, "key bytes for"),
        (prove_too_much, "99 of them proven"),
        (prove_the_end_only, "is proven, its parent"),
    ],
)
def test_the_recount_finds(fault: Callable[[Scheduler], None], message: str) -> None:
    """A scheduler with one wrong fact fails the recount, with a message about that fact."""
    scheduler = busy()
    fault(scheduler)
    with pytest.raises(InvariantError, match=message):
        check(scheduler)


def test_production_can_recount_every_so_often() -> None:
    """`check_every` recounts after every n-th commit, and no fault survives it."""
    scheduler = Scheduler(replace(CONFIG, check_every=3, prefix_cache=False))
    scheduler.add(Request(0, 2, 20), 0)
    scheduler.kv.held_pages += 1
    for now in range(2):
        scheduler.plan(now)
        scheduler.commit(now, OK, now)
    scheduler.plan(2)
    with pytest.raises(InvariantError, match="held_pages is"):
        scheduler.commit(2, OK, 2)
