"""The prefix cache against a dictionary of prefixes, and what a long match costs."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pytest
from core_harness import machine_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.enums import RadixOp
from engine.core.invariants import cache_problems
from engine.core.radix_cache import RadixCache, RadixNode

Key = tuple[int, tuple[int, ...]]  # namespace and a prefix of whole pages


@dataclass
class Cached:
    """One cached page in the model: what LRU and LFU know about it."""

    page: int
    last: int
    hits: int = 0


def int32(ids: tuple[int, ...] | list[int]) -> np.ndarray:
    return np.array(ids, np.int32)


@st.composite
def texts(draw: st.DrawFn, page_size: int) -> tuple[int, ...]:
    """Two-letter texts that often share pages and often part at a page's last token."""
    a, b = (0,) * page_size, (1,) * page_size
    blocks = st.sampled_from([a, b, (*a[1:], 1), (*b[1:], 0)])
    ids = [token for block in draw(st.lists(blocks, max_size=5)) for token in block]
    return tuple(ids + draw(st.lists(st.integers(0, 1), max_size=page_size - 1)))


class CacheMachine(RuleBasedStateMachine):
    """Random calls on a cache and on a dict that maps every cached prefix to its page."""

    @initialize(page_size=st.sampled_from([1, 2, 4, 16]), lfu=st.booleans())
    def start(self, page_size: int, lfu: bool) -> None:
        self.size, self.lfu = page_size, lfu
        self.cache = RadixCache(page_size, "lfu" if lfu else "lru")
        self.model: dict[Key, Cached] = {}
        self.locks: list[tuple[RadixNode, Key]] = []
        self.clock = 0
        self.next_page = 0
        self.hits = np.zeros(3, np.int64)
        self.seen: tuple[int, frozenset[Key]] = (0, frozenset())

    def prefixes(self, namespace: int, ids: tuple[int, ...], start: int = 0) -> list[Key]:
        """The prefixes of `ids` in whole pages that are longer than `start` tokens."""
        ends = range(start + self.size, len(ids) + 1, self.size)
        return [(namespace, ids[:end]) for end in ends]

    def longest(self, namespace: int, ids: tuple[int, ...]) -> list[Key]:
        """The cached prefixes of `ids`, shortest first."""
        found = []
        for key in self.prefixes(namespace, ids):
            if key not in self.model:
                break
            found.append(key)
        return found

    def protected(self, key: Key) -> bool:
        """Whether a lock is held on this prefix or on a longer one."""
        return any(ns == key[0] and ids[: len(key[1])] == key[1] for _, (ns, ids) in self.locks)

    @rule(data=st.data(), namespace=st.integers(0, 1), lock=st.booleans())
    def match(self, data: st.DataObject, namespace: int, lock: bool) -> None:
        ids = data.draw(texts(self.size))
        self.clock += 1
        found = self.longest(namespace, ids)
        for key in found:
            self.model[key].last = self.clock
            self.model[key].hits += 1
        self.hits += np.array([1, len(ids), len(found) * self.size])
        result = self.cache.match(int32(ids), namespace)
        assert result.pages == [self.model[key].page for key in found]
        assert self.cache.depth_tokens(result.node) == len(found) * self.size
        if lock:
            self.cache.lock(result.node)
            self.locks.append((result.node, (namespace, ids[: len(found) * self.size])))

    @rule(data=st.data(), namespace=st.integers(0, 1))
    def look_and_wait(self, data: st.DataObject, namespace: int) -> None:
        ids = data.draw(texts(self.size))
        self.clock += 1
        for key in self.longest(namespace, ids):
            self.model[key].last = self.clock
        match = self.cache.match(int32(ids), namespace)
        self.cache.lock(match.node)
        self.cache.forget(match)
        self.cache.unlock(match.node)

    @rule(data=st.data(), namespace=st.integers(0, 1))
    def peek(self, data: st.DataObject, namespace: int) -> None:
        ids = data.draw(texts(self.size))
        nodes = [(n.node_id, n.last_access, n.hits, n.key) for _, n in self.cache.nodes()]
        found = len(self.longest(namespace, ids)) * self.size
        assert self.cache.peek(int32(ids), namespace) == found
        assert nodes == [(n.node_id, n.last_access, n.hits, n.key) for _, n in self.cache.nodes()]

    @rule(data=st.data(), namespace=st.integers(0, 1), lock=st.booleans())
    def insert(self, data: st.DataObject, namespace: int, lock: bool) -> None:
        node, start = self.cache.root(namespace), ()
        if self.locks and data.draw(st.booleans()):
            node, (namespace, start) = data.draw(st.sampled_from(self.locks))
        ids, whole, pages, duplicates = self._offer(data, node, namespace, start)
        result = self.cache.insert(node, int32(ids), pages)
        assert result.duplicate_pages == duplicates
        assert self.cache.depth_tokens(result.node) == len(whole)
        if lock:
            self.cache.lock(result.node)
            self.locks.append((result.node, (namespace, whole)))

    @rule(data=st.data(), namespace=st.integers(0, 1))
    def insert_and_move_the_lock(self, data: st.DataObject, namespace: int) -> None:
        node, start = self.cache.root(namespace), ()
        if self.locks and data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(self.locks) - 1))
            node, (namespace, start) = self.locks.pop(at)
        before, used = set(node.pages), node.last_access
        ids, whole, pages, duplicates = self._offer(data, node, namespace, start)
        result = self.cache.insert_locked(node, int32(ids), pages)
        assert result.duplicate_pages == duplicates
        assert self.cache.depth_tokens(result.node) == len(whole)
        if result.node is node and node.last_access != used:  # it grew, which uses all of it
            for entry in self.model.values():
                if entry.page in before:
                    entry.last = self.clock
        self.locks.append((result.node, (namespace, whole)))

    def _offer(
        self, data: st.DataObject, node: RadixNode, namespace: int, start: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...], list[int], int]:
        """Put a text below a prefix of the model: (ids, prefix and ids, pages, duplicates)."""
        ids = data.draw(texts(self.size))
        whole = start + ids[: len(ids) // self.size * self.size]
        keys = self.prefixes(namespace, whole, len(start))
        pages = list(range(self.next_page, self.next_page + len(keys)))
        self.next_page += len(keys)
        self.clock += 1
        if keys:
            assert self.cache.continues(node, int32(ids)) == (keys[0] in self.model)
        duplicates = 0
        for key, page in zip(keys, pages, strict=True):
            if key in self.model:
                self.model[key].last = self.clock
                duplicates += 1
            else:
                self.model[key] = Cached(page, self.clock)
        return ids, whole, pages, duplicates

    @precondition(lambda self: self.locks)
    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.locks) - 1))
        node, (_, ids) = self.locks.pop(at)
        assert self.cache.depth_tokens(node) == len(ids)  # through all splits
        self.cache.unlock(node)

    @rule(count=st.integers(0, 3))
    def evict(self, count: int) -> None:
        freed = self.cache.evict(count)
        assert len(freed) == len(set(freed))
        assert set(freed) == set(self._evict_naively(count))

    @rule()
    def clear(self) -> None:
        assert set(self.cache.clear()) == set(self._evict_naively(len(self.model)))

    def _evict_naively(self, count: int) -> list[int]:
        """Page after page: the ends of unlocked prefixes, least used or longest unused first."""
        freed: list[int] = []
        while len(freed) < count:
            inner = {(ns, ids[: -self.size]) for ns, ids in self.model}
            ends = [k for k in self.model if k not in inner and not self.protected(k)]
            if not ends:
                break
            entry = {key: self.model[key] for key in ends}
            worst = min(ends, key=lambda k: (self.lfu * entry[k].hits, entry[k].last))
            freed.append(self.model.pop(worst).page)
        return freed

    @invariant()
    def equal_to_the_model(self) -> None:
        assert list(cache_problems(self.cache)) == []
        kept = sum(self.protected(key) for key in self.model)
        assert self.cache.protected_pages == kept
        assert self.cache.evictable_pages == len(self.model) - kept
        held = [page for _, node in self.cache.nodes() for page in node.pages]
        assert sorted(held) == sorted(entry.page for entry in self.model.values())
        counted = [self.cache.lookups, self.cache.lookup_tokens, self.cache.hit_tokens]
        assert counted == self.hits.tolist()
        version, cached = self.seen
        if frozenset(self.model) != cached:
            assert self.cache.version != version
        self.seen = self.cache.version, frozenset(self.model)


class TestCache(CacheMachine.TestCase):
    """A cache equals its model after any sequence of calls, for LRU and LFU and all page sizes."""

    settings = machine_settings(150, steps=50)


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
