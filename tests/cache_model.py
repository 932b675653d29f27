"""A prefix cache beside a dictionary of prefixes, and any calls on both; tests say which cache."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.invariants import cache_problems
from engine.core.radix_cache import RadixCache
from engine.core.radix_node import RadixNode

Ids = tuple[int, ...]
Key = tuple[int, Ids]  # namespace and a prefix of whole pages


@dataclass
class Cached:
    """One cached page in the model: what LRU and LFU know about it."""

    page: int
    last: int
    hits: int = 0


def int32(ids: tuple[int, ...] | list[int]) -> np.ndarray:
    return np.array(ids, np.int32)


class Model:
    """A cache and, beside it, a dict that maps every cached prefix to its page.

    Each method makes one call and compares the answer.
    """

    def __init__(self, page_size: int, lfu: bool, make: type[RadixCache] = RadixCache) -> None:
        self.size, self.lfu = page_size, lfu
        self.cache = make(page_size, "lfu" if lfu else "lru")
        self.model: dict[Key, Cached] = {}
        self.locks: list[tuple[RadixNode, Key]] = []
        self.clock = 0
        self.next_page = 0
        self.hits = np.zeros(3, np.int64)
        self.seen: tuple[int, frozenset[Key]] = (0, frozenset())

    def prefixes(self, namespace: int, ids: Ids, start: int = 0) -> list[Key]:
        """The prefixes of `ids` in whole pages that are longer than `start` tokens."""
        ends = range(start + self.size, len(ids) + 1, self.size)
        return [(namespace, ids[:end]) for end in ends]

    def longest(self, namespace: int, ids: Ids) -> list[Key]:
        """The cached prefixes of `ids`, shortest first."""
        return list(takewhile(self.model.__contains__, self.prefixes(namespace, ids)))

    def protected(self, key: Key) -> bool:
        """Whether a lock is held on this prefix or on a longer one."""
        return any(ns == key[0] and ids[: len(key[1])] == key[1] for _, (ns, ids) in self.locks)

    def match(self, namespace: int, ids: Ids, lock: bool) -> None:
        """Somebody uses the longest cached prefix."""
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

    def look_and_wait(self, namespace: int, ids: Ids) -> None:
        """Somebody looks and cannot be admitted: a use, but not a hit."""
        self.clock += 1
        for key in self.longest(namespace, ids):
            self.model[key].last = self.clock
        match = self.cache.match(int32(ids), namespace)
        self.cache.lock(match.node)
        self.cache.forget(match)
        self.cache.unlock(match.node)

    def peek(self, namespace: int, ids: Ids) -> None:
        """Somebody looks without a trace."""
        nodes = [(n.node_id, n.last_access, n.hits, n.key) for _, n in self.cache.nodes()]
        found = len(self.longest(namespace, ids)) * self.size
        assert self.cache.peek(int32(ids), namespace) == found
        assert nodes == [(n.node_id, n.last_access, n.hits, n.key) for _, n in self.cache.nodes()]

    def insert(self, namespace: int, ids: Ids, below: int | None, lock: bool) -> None:
        """Cache a text, at the root or below the prefix that the `below`-th lock holds."""
        node, start = self.cache.root(namespace), ()
        if below is not None:
            node, (namespace, start) = self.locks[below]
        whole, pages, duplicates = self._offer(node, namespace, start, ids)
        result = self.cache.insert(node, int32(ids), pages)
        assert result.duplicate_pages == duplicates
        assert self.cache.depth_tokens(result.node) == len(whole)
        if lock:
            self.cache.lock(result.node)
            self.locks.append((result.node, (namespace, whole)))

    def insert_and_move_the_lock(self, namespace: int, ids: Ids, below: int | None) -> None:
        """The same, and the lock moves to the end of the text."""
        node, start = self.cache.root(namespace), ()
        if below is not None:
            node, (namespace, start) = self.locks.pop(below)
        before, used = set(node.pages), node.last_access
        whole, pages, duplicates = self._offer(node, namespace, start, ids)
        result = self.cache.insert_locked(node, int32(ids), pages)
        assert result.duplicate_pages == duplicates
        assert self.cache.depth_tokens(result.node) == len(whole)
        if result.node is node and node.last_access != used:  # it grew, which uses all of it
            for entry in self.model.values():
                if entry.page in before:
                    entry.last = self.clock
        self.locks.append((result.node, (namespace, whole)))

    def _offer(
        self, node: RadixNode, namespace: int, start: Ids, ids: Ids
    ) -> tuple[Ids, list[int], int]:
        """Put a text below a prefix of the model: (the longer prefix, its pages, duplicates)."""
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
        return whole, pages, duplicates

    def unlock(self, at: int) -> None:
        """A holder goes; its prefix has stayed the same through all splits."""
        node, (_, ids) = self.locks.pop(at)
        assert self.cache.depth_tokens(node) == len(ids)
        self.cache.unlock(node)

    def evict(self, count: int) -> None:
        """Exactly the `count` least valuable pages go, or all that may."""
        freed = self.cache.evict(count)
        assert len(freed) == len(set(freed))
        assert set(freed) == set(self._evict_naively(count))

    def clear(self) -> None:
        """All that may go goes."""
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

    def compare(self) -> None:
        """Pages, totals, statistics and version are those of the model."""
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


def blocks(page_size: int) -> list[Ids]:
    """Pages of two letters, some of which part at their last token."""
    a, b = (0,) * page_size, (1,) * page_size
    return [a, b, (*a[1:], 1), (*b[1:], 0)]


@st.composite
def texts(draw: st.DrawFn, page_size: int) -> Ids:
    """Texts that often share pages; the last page is not always full."""
    page = st.sampled_from(blocks(page_size))
    whole = [token for _ in range(draw(st.integers(0, 4))) for token in draw(page)]
    return tuple(whole + [1] * draw(st.integers(0, page_size - 1)))


class CacheMachine(RuleBasedStateMachine):
    """Any calls, in any order."""

    make: type[RadixCache] = RadixCache

    @initialize(page_size=st.sampled_from([1, 2, 4, 16]), lfu=st.booleans())
    def start(self, page_size: int, lfu: bool) -> None:
        self.both = Model(page_size, lfu, self.make)

    def _text(self, data: st.DataObject) -> Ids:
        return data.draw(texts(self.both.size))

    def _lock(self, data: st.DataObject) -> int | None:
        last = len(self.both.locks) - 1
        return data.draw(st.integers(0, last)) if last >= 0 and data.draw(st.booleans()) else None

    @rule(data=st.data(), namespace=st.integers(0, 1), lock=st.booleans())
    def match(self, data: st.DataObject, namespace: int, lock: bool) -> None:
        self.both.match(namespace, self._text(data), lock)

    @rule(data=st.data(), namespace=st.integers(0, 1))
    def look(self, data: st.DataObject, namespace: int) -> None:
        self.both.look_and_wait(namespace, self._text(data))
        self.both.peek(namespace, self._text(data))

    @rule(data=st.data(), namespace=st.integers(0, 1), lock=st.booleans())
    def insert(self, data: st.DataObject, namespace: int, lock: bool) -> None:
        self.both.insert(namespace, self._text(data), self._lock(data), lock)

    @rule(data=st.data(), namespace=st.integers(0, 1))
    def insert_and_move_the_lock(self, data: st.DataObject, namespace: int) -> None:
        self.both.insert_and_move_the_lock(namespace, self._text(data), self._lock(data))

    @precondition(lambda self: self.both.locks)
    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        self.both.unlock(data.draw(st.integers(0, len(self.both.locks) - 1)))

    @rule(count=st.integers(0, 3))
    def evict(self, count: int) -> None:
        self.both.evict(count)

    @invariant()
    def equal_to_the_model(self) -> None:
        self.both.compare()

    def teardown(self) -> None:
        if hasattr(self, "both"):
            self.both.clear()


def swarm(seed: int, calls: int = 120, make: type[RadixCache] = RadixCache) -> int:
    """Random calls in proportions of their own; how often evict had a choice."""
    rng = random.Random(seed)
    both = Model(rng.choice([1, 2, 4, 16]), rng.random() < 0.5, make)
    pages = blocks(both.size)
    weights = [rng.choice([0, 1, 4]) for _ in range(7)]
    choices = 0
    for _ in range(calls):
        ids = [token for _ in range(rng.randint(0, 4)) for token in rng.choice(pages)]
        text = (*ids, *[1] * rng.randint(0, both.size - 1))
        namespace, lock = rng.choice([0, 0, 0, 1]), rng.random() < 0.3
        below = rng.randrange(len(both.locks)) if both.locks and rng.random() < 0.4 else None
        evictable = both.cache.evictable_pages
        count = rng.choice([0, 1, 1, 2, 3, evictable // 2])
        call = rng.choices(range(8), [*weights, 3])[0]
        if call == 0:
            both.match(namespace, text, lock)
        elif call == 1:
            both.look_and_wait(namespace, text)
        elif call == 2:
            both.peek(namespace, text)
        elif call == 3:
            both.insert_and_move_the_lock(namespace, text, below)
        elif call == 4 and both.locks:
            both.unlock(rng.randrange(len(both.locks)))
        elif call == 5 and len(both.locks) > 4:
            while both.locks:
                both.unlock(0)
        elif call == 6:
            choices += 0 < count < evictable
            both.evict(count)
        else:
            both.insert(namespace, text, below, lock and rng.random() < 0.3)
        both.compare()
    both.clear()
    both.compare()
    return choices
