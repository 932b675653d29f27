"""Prefix cache and page pool against a dictionary that knows every cached prefix.

Users match, lock, insert and let go in any order; the cache evicts. Whatever it answers, a brute
force search of the dictionary must answer, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from engine.core.invariants import cache_problems
from engine.core.page_pool import PagePool
from engine.core.radix_cache import RadixCache
from engine.core.radix_node import RadixNode
from workbench.fuzz.cache_setup import FAULTS, Setup, decode, draw_setup, encode, needed, simpler
from workbench.fuzz.machine import Machine, Operation, Weights
from workbench.fuzz.rig import require

_MARKS: Final = frozenset({
    "hit", "partial hit", "miss", "split", "duplicate", "evicted", "trimmed", "grown", "own text",
    "own text hit", "forgotten", "flushed", "full of locks", "other tenant",
    "inserted without a lock", "withdrawn", "own text withdrawn",
})  # fmt: skip

# What is done in every run, and how often.
_BASE: Final = {
    "use": 0.4, "insert": 0.3, "leave": 0.3, "evict": 0.1, "peek": 0.05, "prove": 0.05
}  # fmt: skip

Prefix = tuple[int, tuple[int, ...]]  # namespace, token ids


class _Hold(NamedTuple):
    """A user's lock: the node, what prefix it stands for, and the own text's name, if it is one."""

    node: RadixNode
    prefix: Prefix
    pages: list[int]
    name: bytes


class CacheTrial:
    """Drives a radix cache and a page pool."""

    def __init__(self, seed: int, setup: Setup) -> None:
        del seed  # everything is in the operations
        self.marks: set[str] = set()
        self._setup = setup
        self._pool = PagePool(setup.num_pages, setup.page_size)
        self._cache = RadixCache(setup.page_size, setup.eviction)
        self._ids = [np.array(text, np.int32) for text in setup.texts]
        self._known: dict[Prefix, int] = {}  # every cached whole-page prefix and its last page
        self._owns: dict[bytes, list[int]] = {}  # own text -> its pages
        self._namespace_of: dict[bytes, int] = {}
        self._proven: set[int] = set()  # pages
        self._withdrawn: set[int] = set()  # pages that nobody can match any more
        self._holds: list[_Hold] = []
        self._checks = 0
        self._weights = Weights(_BASE | setup.rates)
        self._calls: dict[str, Callable[..., None]] = {
            "use": self._use, "insert": self._insert, "leave": self._leave, "evict": self._evict,
            "peek": self._peek, "flush": self._flush, "own": self._own, "forget": self._forget,
            "burst": self._burst, "prove": self._prove, "nan": self._withdraw,
        }  # fmt: skip

    @property
    def checks(self) -> int:
        return self._checks

    def choose(self, rng: random.Random) -> Operation:
        name = self._weights.draw(rng)
        if name == "leave" and len(self._holds) < 2:
            name = "use"
        return name, rng.getrandbits(24)

    def apply(self, operation: Operation) -> None:
        name, choice = operation
        self._calls[name](choice)
        self._checks += 1
        self._check_totals()
        if self._checks % self._setup.every == 0:
            self._recount()

    def finish(self) -> None:
        while self._holds:
            self._leave(0)
        self._recount()
        require(self._cache.protected_pages == 0, "without locks nothing is protected")
        self._pool.free(self._cache.clear())
        free = self._pool.free_pages
        require(free == self._setup.num_pages, "an unlocked cache can be emptied", free)
        require(not list(self._cache.nodes()), "an emptied cache has no nodes")

    def write_unfinished(self) -> None:
        """Nothing is recorded."""

    def _text(self, choice: int) -> tuple[int, int, int]:
        """(namespace, text, tokens) that a choice stands for; many lengths end at a page's edge."""
        setup = self._setup
        index = choice % len(setup.texts)
        longest, size = len(setup.texts[index]), setup.page_size
        at = choice >> 4
        tokens = at % (longest + 1)
        if at & 1:
            tokens = min(longest, tokens // size * size + (at >> 1) % 3)
        return (choice >> 16) % setup.namespaces, index, tokens

    def _use(self, choice: int) -> None:
        """Look a prefix up and lock it."""
        namespace, index, tokens = self._text(choice)
        expected = self._longest(namespace, index, tokens)
        peeked = self._cache.peek(self._ids[index][:tokens], namespace)
        nodes = self._cache.version
        match = self._cache.match(self._ids[index][:tokens], namespace)
        require(match.pages == expected, "a match is the longest cached prefix", match, expected)
        depth = len(expected) * self._setup.page_size
        require(peeked == depth, "a look changes nothing and tells the same", peeked, depth)
        require(self._cache.version == nodes, "a match changes no cached prefix")
        self._cache.lock(match.node)
        prefix = (namespace, self._setup.texts[index][:depth])
        self._holds.append(_Hold(match.node, prefix, match.pages, b""))
        whole = tokens // self._setup.page_size
        self.marks.add(
            "miss" if not expected else "hit" if len(expected) == whole else "partial hit"
        )
        if namespace:
            self.marks.add("other tenant")

    def _longest(self, namespace: int, index: int, tokens: int) -> list[int]:
        """Pages of the longest known prefix, by asking for one page after the other."""
        size, text, pages = self._setup.page_size, self._setup.texts[index], list[int]()
        for end in range(size, tokens + 1, size):
            page = self._known.get((namespace, text[:end]))
            if page is None:
                break
            pages.append(page)
        return pages

    def _insert(self, choice: int) -> None:
        """The holder of a lock has computed what follows it, and shares that."""
        if not self._holds:
            return None
        at = (choice >> 8) % len(self._holds)
        hold = self._holds[at]
        if hold.name:
            return self._grow_own(at, choice)
        if not self._withdrawn.isdisjoint(hold.pages):
            return None  # what follows could be withdrawn or not
        size, (namespace, prefix) = self._setup.page_size, hold.prefix
        texts = [t for t in self._setup.texts if t[: len(prefix)] == prefix]
        text = texts[choice % len(texts)]
        start = len(prefix)
        count = min((len(text) - start) // size, 1 + (choice >> 4) % 3)
        if count < 1 or not self._make_room(count):
            return None
        pages = self._pool.alloc(count)
        ids = np.array(text[start : start + count * size], np.int32)
        known = [self._known.get((namespace, text[: start + (i + 1) * size])) for i in range(count)]
        duplicates = sum(page is not None for page in known)
        before = len(list(self._cache.nodes()))
        if choice >> 21 & 3:
            result = self._cache.insert_locked(hold.node, ids, pages)
        else:
            result = self._cache.insert(hold.node, ids, pages)
            self._cache.lock(result.node)
            self._cache.unlock(hold.node)
            self.marks.add("inserted without a lock")
        require(result.duplicate_pages == duplicates, "only what is new is taken", result, known)
        self._pool.free(pages[:duplicates])
        owned = [page for page in known if page is not None] + pages[duplicates:]
        for i, page in enumerate(owned):
            self._known[namespace, text[: start + (i + 1) * size]] = page
        whole = (namespace, text[: start + count * size])
        self._holds[at] = _Hold(result.node, whole, hold.pages + owned, b"")
        if duplicates:
            self.marks.add("duplicate")
        elif len(list(self._cache.nodes())) == before:
            self.marks.add("grown")
        if len(list(self._cache.nodes())) > before + 1:
            self.marks.add("split")
        return None

    def _own(self, choice: int) -> None:
        """A text without ids: new, or an old one taken up again by its owner."""
        namespace = (choice >> 16) % self._setup.namespaces
        names = [name for name in self._owns if self._namespace_of[name] == namespace]
        if names and choice & 1:
            name = names[(choice >> 1) % len(names)]
            tokens = (choice >> 4) % (5 * self._setup.page_size)
            held = min(len(self._owns[name]), tokens // self._setup.page_size)
            seen = self._cache.peek_own(name, tokens, namespace)
            require(seen == held * self._setup.page_size, "a look finds an own text", seen, held)
            pages = self._owns[name][: tokens // self._setup.page_size]
            match = self._cache.match_own(name, tokens, namespace)
            require(match.pages == pages, "an owner finds his own text", match.pages, pages)
            self._cache.lock(match.node)
            self._holds.append(
                _Hold(match.node, (namespace, ()), match.pages, name if pages else b"")
            )
            if pages:
                self.marks.add("own text hit")
            return
        count = 1 + (choice >> 2) % 2
        if not self._make_room(count):
            return
        root = self._cache.root(namespace)
        self._cache.lock(root)
        pages = self._pool.alloc(count)
        node = self._cache.insert_own(root, list(pages))
        self._owns[node.first], self._namespace_of[node.first] = list(pages), namespace
        self._holds.append(_Hold(node, (namespace, ()), list(pages), node.first))
        self.marks.add("own text")

    def _grow_own(self, at: int, choice: int) -> None:
        hold = self._holds[at]
        held = len(hold.pages)
        longer = self._owns.get(hold.name, [])
        if len(longer) != held or not self._make_room(1):
            return  # an owner goes on at the end of his text only
        del choice
        pages = self._pool.alloc(1)
        node = self._cache.insert_own(hold.node, list(pages))
        self._owns[hold.name] = longer + pages
        self._holds[at] = hold._replace(node=node, pages=hold.pages + pages)

    def _leave(self, choice: int) -> None:
        if self._holds:
            hold = self._holds.pop(choice % len(self._holds))
            self._cache.unlock(hold.node)

    def _prove(self, choice: int) -> None:
        """A token came of what somebody holds."""
        if self._holds:
            hold = self._holds[choice % len(self._holds)]
            self._cache.prove(hold.node)
            self._proven.update(hold.pages)

    def _withdraw(self, choice: int) -> None:
        """No number came of it: what is not proven, and what follows that, is not found again."""
        if not self._holds:
            return
        hold = self._holds[choice % len(self._holds)]
        self._cache.withdraw(hold.node)
        doubtful = [i for i, page in enumerate(hold.pages) if page not in self._proven]
        if not doubtful or not self._withdrawn.isdisjoint(hold.pages):
            return
        if hold.name:
            self._withdraw_own(hold, doubtful[0])
            return
        self.marks.add("withdrawn")
        namespace, prefix = hold.prefix
        start = prefix[: (doubtful[0] + 1) * self._setup.page_size]
        for key in [k for k in self._known if k[0] == namespace and k[1][: len(start)] == start]:
            self._withdrawn.add(self._known.pop(key))

    def _withdraw_own(self, hold: _Hold, kept: int) -> None:
        """The owner, too, finds only the first `kept` pages of a text from now on."""
        self.marks.add("own text withdrawn")
        pages = self._owns.pop(hold.name)
        self._withdrawn.update(pages[kept:])
        if kept:
            self._owns[hold.name] = pages[:kept]
        size = self._setup.page_size
        found = self._cache.peek_own(hold.name, len(pages) * size, hold.prefix[0])
        require(found == kept * size, "what is withdrawn is lost to its owner", found, kept)

    def _forget(self, choice: int) -> None:
        """Look, and decide against it."""
        namespace, index, tokens = self._text(choice)
        cache = self._cache
        counts = (cache.lookups, cache.lookup_tokens, cache.hit_tokens)
        match = cache.match(self._ids[index][:tokens], namespace)
        cache.lock(match.node)
        cache.forget(match)
        cache.unlock(match.node)
        after = (cache.lookups, cache.lookup_tokens, cache.hit_tokens)
        require(counts == after, "what is forgotten is not counted", counts, after)
        self.marks.add("forgotten")

    def _peek(self, choice: int) -> None:
        namespace, index, tokens = self._text(choice)
        found = self._cache.peek(self._ids[index][:tokens], namespace)
        depth = len(self._longest(namespace, index, tokens)) * self._setup.page_size
        require(found == depth, "a look tells the longest cached prefix", found, depth)

    def _burst(self, choice: int) -> None:
        """Somebody needs many pages at once."""
        count = 1 + choice % self._setup.num_pages
        if self._make_room(count):
            self._pool.free(self._pool.alloc(count))
        else:
            self.marks.add("full of locks")

    def _evict(self, choice: int) -> None:
        self._give_up(1 + choice % 5)

    def _flush(self, choice: int) -> None:
        del choice
        self._give_up(self._cache.evictable_pages)
        require(self._cache.evictable_pages == 0, "a flush leaves nothing that could go")
        self.marks.add("flushed")

    def _make_room(self, count: int) -> bool:
        missing = count - self._pool.free_pages
        if missing > self._cache.evictable_pages:
            return False
        if missing > 0:
            self._give_up(missing)
        return True

    def _give_up(self, count: int) -> None:
        """Evict, and check whom it hits: unlocked leaf ends, those of least value first."""
        if count < 1:
            return
        cache = self._cache
        lfu = self._setup.eviction == "lfu"
        leaves = [n for _, n in cache.nodes() if not n.locks and not n.children]
        first = min(
            leaves,
            key=lambda n: (n.hits if lfu else 0, n.last_access, n.node_id),
            default=None,
        )
        size = len(first.pages) if first is not None else 0
        victims = set(first.pages) if first is not None else set()
        evictable = cache.evictable_pages
        freed = cache.evict(count)
        require(len(freed) == min(count, evictable), "what can go goes", freed, count, evictable)
        least = set(freed[: min(size, count)])
        require(least <= victims, "the leaf of least value goes first", freed, victims)
        self.marks.add("trimmed" if 0 < len(freed) < size else "evicted")
        self._forget_pages(set(freed))
        self._pool.free(freed)

    def _forget_pages(self, gone: set[int]) -> None:
        for hold in self._holds:
            require(gone.isdisjoint(hold.pages), "nobody loses a page that he holds", gone, hold)
        self._proven -= gone
        self._withdrawn -= gone
        self._known = {prefix: page for prefix, page in self._known.items() if page not in gone}
        for name, pages in list(self._owns.items()):
            kept = [page for page in pages if page not in gone]
            require(pages[: len(kept)] == kept, "a text is given up from its end", pages, gone)
            if kept:
                self._owns[name] = kept
            else:
                del self._owns[name]

    def _check_totals(self) -> None:
        cache = self._cache
        cached = cache.evictable_pages + cache.protected_pages
        known = len(self._known) + len(self._withdrawn) + sum(map(len, self._owns.values()))
        require(cached == known, "the cache holds what was cached and not given up", cached, known)
        total = cached + self._pool.free_pages
        require(total == self._setup.num_pages, "every page has one owner", total)

    def _recount(self) -> None:
        problems = list(cache_problems(self._cache))
        require(not problems, "the cache's books add up", *problems)
        locks: dict[int, int] = {}
        for hold in self._holds:
            step = hold.node
            while (parent := step.parent) is not None:
                locks[step.node_id] = locks.get(step.node_id, 0) + 1
                step = parent
        pages: list[int] = self._pool.free_list()
        for _, node in self._cache.nodes():
            counted = locks.get(node.node_id, 0)
            require(node.locks == counted, "locks are as many as holders", node.node_id, counted)
            pages += node.pages
        require(len(pages) == len(set(pages)), "no page is held twice", pages)


MACHINE: Final = Machine(
    name="cache",
    faults=FAULTS,
    marks=_MARKS,
    takes=dict.fromkeys(FAULTS | _BASE.keys(), 1),
    operations=(20, 200),
    is_system=False,
    draw=draw_setup,
    open=CacheTrial,
    encode=encode,
    decode=decode,
    needed=needed,
    simpler=simpler,
)
