"""The prefix cache against a dictionary of prefixes, and what a long match costs."""

from __future__ import annotations

import time

import numpy as np
import pytest
from cache_model import CacheMachine, int32, swarm
from core_harness import fresh_seeds, machine_settings

from engine.core.enums import RadixOp
from engine.core.invariants import cache_problems
from engine.core.radix_cache import RadixCache
from engine.core.radix_node import RadixNode


class TestCache(CacheMachine.TestCase):
    """A cache equals its model after any sequence of calls, for LRU and LFU and all page sizes."""

    settings = machine_settings(80, steps=40)


@pytest.mark.parametrize("block", range(4))
def test_random_calls_on_a_cache_and_on_its_model(block: int) -> None:
    """The same law for long random sequences, each with its own mixture of calls."""
    assert sum(swarm(seed) for seed in range(block * 60, block * 60 + 60)) > 400


def test_random_calls_that_nobody_has_seen() -> None:
    """The same for new seeds."""
    for seed in fresh_seeds(40):
        swarm(seed)


def long_text(seed: int, length: int = 10_000) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 128_000, length).astype(np.int32)


@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_a_long_match_touches_only_the_nodes_on_its_path(page_size: int) -> None:
    """Matching 10,000 tokens among 500 texts with common beginnings visits the path and no more."""
    touched: list[int] = []

    def listen(op: RadixOp, node: RadixNode) -> None:
        if op == RadixOp.TOUCH:
            touched.append(node.node_id)

    cache = RadixCache(page_size, "lru", listen)
    stem = long_text(0)
    pages = list(range(10_000))
    cache.insert(cache.root(0), stem, pages)
    for seed in range(1, 500):
        text = np.concatenate([stem[: seed * 16], long_text(seed, 64)])
        cache.insert(cache.root(0), text, pages)
    for cut in [2048, 4096, 9984]:
        touched.clear()
        match = cache.match(np.concatenate([stem[:cut], long_text(999, 16)]))
        assert len(match.pages) == cut // page_size
        path, node = [], match.node
        while node.parent is not None:
            path.append(node.node_id)
            node = node.parent
        assert touched == path[::-1]
    touched.clear()
    assert len(cache.match(long_text(1000)).pages) == 0
    assert touched == []


def best_of(repeats: int, call: object) -> float:
    """Least seconds of several calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def test_matching_and_inserting_a_long_prompt_takes_microseconds() -> None:
    """A 10,000-token prompt is matched in at most 100 us and inserted in at most 300 us."""
    cache, text = RadixCache(16), long_text(1)
    pages = list(range(625))
    cache.insert(cache.root(0), text, pages)
    diverging = text.copy()
    diverging[9_990] += 1
    assert len(cache.match(diverging).pages) == 624
    assert best_of(50, lambda: cache.match(diverging)) < 100e-6
    assert best_of(50, lambda: cache.peek(diverging)) < 100e-6

    def insert() -> None:
        fresh = RadixCache(16)
        fresh.insert(fresh.root(0), text, pages)

    assert best_of(50, insert) < 300e-6


def test_namespaces_never_share() -> None:
    """The same text in two namespaces is two texts, whichever is evicted."""
    cache, ids = RadixCache(2), int32([1, 2, 3, 4])
    cache.insert(cache.root(0), ids, [0, 1])
    assert cache.match(ids, 1).pages == []
    cache.insert(cache.root(1), ids, [2, 3])
    assert (cache.match(ids, 0).pages, cache.match(ids, 1).pages) == ([0, 1], [2, 3])


def test_a_locked_node_keeps_its_prefix_when_it_is_split() -> None:
    """A lock taken before a split protects the whole prefix, and unlocking it frees the whole."""
    cache = RadixCache(1)
    node = cache.insert(cache.root(0), int32([1, 2, 3, 4]), [0, 1, 2, 3]).node
    cache.lock(node)
    cache.insert(cache.root(0), int32([1, 2, 9]), [7, 8, 9])
    assert cache.depth_tokens(node) == 4
    assert cache.evict(10) == [9]
    cache.unlock(node)
    assert sorted(cache.evict(10)) == [0, 1, 2, 3]


def test_misuse_is_refused() -> None:
    """Too few pages for the ids, and one unlock too many, are errors that change nothing."""
    cache = RadixCache(2)
    with pytest.raises(ValueError, match="2 full pages of ids but only 1 pages"):
        cache.insert(cache.root(0), int32([1, 2, 3, 4]), [0])
    node = cache.insert(cache.root(0), int32([1, 2, 3]), [0]).node
    with pytest.raises(ValueError, match="not locked"):
        cache.unlock(node)
    assert list(cache_problems(cache)) == []
    assert cache.evictable_pages == 1
