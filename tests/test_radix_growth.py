"""A prefix cache whose leaves grow under the lock of their one holder, against brute force.

The model is a dict from every cached prefix (a tuple of ids, whole pages) to its page. Requests
hold a prefix, extend it by `insert_locked`, and let go; in between the cache evicts.
"""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from engine.core.invariants import cache_problems
from engine.core.radix_cache import RadixCache
from engine.core.radix_node import RadixNode

Prefix = tuple[int, ...]


class Model:
    """A cache, what it should hold, and the requests that hold prefixes of it."""

    def __init__(
        self, seed: int, page_size: int, eviction: str, make: type[RadixCache] = RadixCache
    ) -> None:
        self.random = Random(seed)
        self.size = page_size
        self.cache = make(page_size, eviction)  # type: ignore[arg-type]
        self.pages: dict[Prefix, int] = {}
        self.held: list[tuple[RadixNode, Prefix]] = []
        self.next_page = 0

    def text(self, pages: int) -> Prefix:
        return tuple(self.random.randrange(2) for _ in range(pages * self.size))

    def prefixes(self, text: Prefix) -> list[Prefix]:
        return [text[:end] for end in range(self.size, len(text) + 1, self.size)]

    def longest(self, text: Prefix) -> Prefix:
        known = [prefix for prefix in self.prefixes(text) if prefix in self.pages]
        return known[-1] if known else ()

    def start(self) -> None:
        """A request comes: it finds the longest cached prefix of its text and holds it."""
        text = self.text(self.random.randint(0, 5)) + (0,) * self.random.randrange(self.size)
        match = self.cache.match(np.array(text, np.int32))
        prefix = self.longest(text)
        assert match.pages == [self.pages[p] for p in self.prefixes(prefix)]
        self.cache.lock(match.node)
        self.held.append((match.node, prefix))

    def extend(self) -> None:
        """A request publishes more text; what the cache had already it does not take."""
        at = self.random.randrange(len(self.held))
        node, prefix = self.held[at]
        more = self.text(self.random.randint(0, 4))
        new = self.prefixes(prefix + more)[len(prefix) // self.size :]
        offered = list(range(self.next_page, self.next_page + len(new)))
        self.next_page += len(new)
        result = self.cache.insert_locked(node, np.array(more, np.int32), list(offered))
        known = sum(prefix in self.pages for prefix in new)
        assert result.duplicate_pages == known
        self.pages.update(zip(new[known:], offered[known:], strict=True))
        self.held[at] = (result.node, prefix + more)

    def finish(self) -> None:
        """A request lets go of its prefix."""
        node, _ = self.held.pop(self.random.randrange(len(self.held)))
        self.cache.unlock(node)

    def evict(self) -> None:
        """Some pages are wanted: unheld ones go, ends of text first."""
        wanted = self.random.randint(1, 6)
        kept = {p for _, held in self.held for p in self.prefixes(held)}
        freed = set(self.cache.evict(wanted))
        gone = [prefix for prefix, page in self.pages.items() if page in freed]
        assert len(gone) == len(freed) == min(wanted, len(self.pages) - len(kept))
        assert kept.isdisjoint(gone)
        for prefix in gone:
            del self.pages[prefix]
        assert all(p[: -self.size] in self.pages or len(p) == self.size for p in self.pages)

    def check(self) -> None:
        assert list(cache_problems(self.cache)) == []
        for node, prefix in self.held:
            assert self.cache.depth_tokens(node) == len(prefix)
        kept = {p for _, held in self.held for p in self.prefixes(held)}
        assert self.cache.protected_pages == len(kept)
        assert self.cache.evictable_pages == len(self.pages) - len(kept)


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("seed", range(8))
def test_growing_leaves_equal_brute_force(seed: int, page_size: int, eviction: str) -> None:
    """Hits, duplicates, locks, evictions and totals are those of a plain dict of prefixes."""
    serve(Model(seed, page_size, eviction))


def serve(model: Model) -> None:
    """Random requests come, publish, and go, and every answer is compared."""
    for _ in range(300):
        steps = [model.start, model.evict]
        if model.held:
            steps += [model.extend, model.extend, model.finish]
        model.random.choice(steps)()
        model.check()


def test_a_lone_holder_keeps_its_node() -> None:
    """Text that one request alone adds bit by bit is one node, evicted from its end."""
    cache = RadixCache(2)
    node = cache.root(0)
    for at in range(5):
        node = cache.insert_locked(node, np.arange(2 * at, 2 * at + 2, dtype=np.int32), [at]).node
    assert len(list(cache.nodes())) == 1
    assert cache.match(np.arange(10, dtype=np.int32)).pages == [0, 1, 2, 3, 4]
    cache.unlock(node)
    assert cache.evict(2) == [3, 4]
    assert cache.match(np.arange(10, dtype=np.int32)).pages == [0, 1, 2]


def test_growing_takes_a_lock_and_pages() -> None:
    """Growing a prefix that nobody holds, or without pages for it, is refused."""
    cache = RadixCache(1)
    leaf = cache.insert(cache.root(0), np.array([1, 2], np.int32), [0, 1]).node
    with pytest.raises(ValueError, match="not locked"):
        cache.insert_locked(leaf, np.array([3], np.int32), [2])
    cache.lock(leaf)
    with pytest.raises(ValueError, match="only 0 pages"):
        cache.insert_locked(leaf, np.array([3], np.int32), [])
