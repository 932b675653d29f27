"""What counts as a prefix hit, and which replica a prompt's prefix is found on."""

from __future__ import annotations

import numpy as np

from engine.core.config import SchedulerConfig
from engine.core.kv_memory import KvMemory
from engine.core.plan import StepResult
from engine.core.radix_cache import RadixCache
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.token_ids import TokenBuffer

PAGE = 4


def int32(*ids: int) -> np.ndarray:
    return np.array(ids, np.int32)


def request_of(request_id: int, ids: list[int], max_tokens: int = 1) -> Request:
    return Request(request_id, len(ids), max_tokens, tokens=TokenBuffer(ids))


def steps(scheduler: Scheduler, count: int) -> None:
    """Plan and commit up to `count` steps; every sampled token is 7."""
    for now in range(count):
        plan = scheduler.plan(now)
        if plan is None:
            return
        ids = [7] * len(plan.sampling_requests())
        scheduler.commit(plan.plan_id, StepResult(token_ids=ids), now)


def test_each_cache_answers_for_itself() -> None:
    """Asking one replica's cache for a prefix does not answer for another's at the same version."""
    caches = [KvMemory(100, PAGE, prefix_cache=True, eviction="lru") for _ in range(2)]
    for letter, kv in enumerate(caches):
        assert kv.cache is not None
        kv.cache.insert(kv.cache.root(0), int32(*[letter] * 8), kv.pool.alloc(2))
    request = request_of(0, [1] * 9)
    assert [kv.peek(request) for kv in caches] == [0, 8]
    assert [kv.peek(request) for kv in reversed(caches)] == [8, 0]


def test_a_request_that_waits_hits_once() -> None:
    """However many steps the head of the queue is blocked, its prefix counts one hit in the end."""
    config = SchedulerConfig(
        num_pages=40, page_size=PAGE, max_model_len=200, max_running_requests=2,
        max_num_batched_tokens=64, eviction="lfu", max_plans_in_flight=1, admission="reserve",
    )  # fmt: skip
    scheduler = Scheduler(config)
    cache = scheduler.kv.cache
    assert cache is not None
    scheduler.add(request_of(0, [1] * 9), 0)
    steps(scheduler, 2)
    scheduler.add(request_of(1, [2] * 9, 60), 0)
    steps(scheduler, 1)
    scheduler.add(request_of(2, [1] * 9 + [5] * 20, 90), 0)
    steps(scheduler, 30)
    assert len(scheduler.book.waiting) == 1
    prefix = cache.root(0).children[int32(1, 1, 1, 1).tobytes()]
    assert prefix.hits == 0
    assert (cache.lookups, cache.lookup_tokens, cache.hit_tokens) == (2, 16, 0)
    steps(scheduler, 200)
    assert not scheduler.has_work
    assert prefix.hits == 1
    assert (cache.lookups, cache.lookup_tokens, cache.hit_tokens) == (3, 44, 8)


def test_what_follows_a_popular_prefix_is_not_popular() -> None:
    """Under LFU a text that extends a prefix with hits goes before a newer one without."""
    cache = RadixCache(PAGE, "lfu")
    cache.insert(cache.root(0), int32(*[1] * 4), [0])
    match = cache.match(int32(*[1] * 4))
    cache.lock(match.node)
    tail = cache.insert_locked(match.node, int32(*[2] * 4), [1])
    cache.unlock(tail.node)
    cache.insert(cache.root(0), int32(*[3] * 4), [2])
    assert cache.evict(3) == [1, 2, 0]
