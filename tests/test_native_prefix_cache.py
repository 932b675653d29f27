"""The prefix cache in C++: the laws of the Python one, and the very same answers.

The machines and models of `cache_model`, `test_radix_growth` and the fuzzer run on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import test_radix_growth
from cache_model import CacheMachine, swarm
from core_harness import fresh_seeds, machine_settings
from hypothesis.stateful import run_state_machine_as_test

from engine.core.enums import RadixOp
from engine.core.radix_cache import RadixCache
from engine.core.radix_node import RadixNode
from engine.core.scheduler import Scheduler
from engine.native.cache_choice import put_native
from engine.native.prefix_cache import native_cache
from workbench.fuzz import cache_machine, rig
from workbench.fuzz.explore import explore
from workbench.fuzz.machines import FAULTS, MACHINES

pytestmark = pytest.mark.usefixtures("prefix_cache_builds")


def int32(*ids: int) -> np.ndarray:
    return np.array(ids, np.int32)


# The laws of the Python cache


class NativeMachine(CacheMachine):
    make = staticmethod(native_cache)  # type: ignore[assignment]


def test_any_calls_on_the_native_cache_and_on_a_model() -> None:
    """The native cache equals the model of the Python one after any sequence of calls."""
    run_state_machine_as_test(NativeMachine, settings=machine_settings(40, steps=40))


def test_random_calls_on_the_native_cache_and_on_a_model() -> None:
    """The same for long sequences, and for seeds that nobody has seen."""
    seeds = [*range(60), *fresh_seeds(20)]
    assert sum(swarm(seed, make=native_cache) for seed in seeds) > 100


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
@pytest.mark.parametrize("page_size", [1, 4])
def test_growing_leaves_of_the_native_cache(page_size: int, eviction: str) -> None:
    """Leaves that grow under a lock equal brute force."""
    test_radix_growth.serve(test_radix_growth.Model(3, page_size, eviction, native_cache))


def test_the_fuzzer_finds_nothing_in_the_native_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzzer's cache machine, with own texts and tenants, breaks no law."""
    monkeypatch.setattr(cache_machine, "RadixCache", native_cache)
    for seed in range(12):
        assert explore(MACHINES["cache"], seed, FAULTS).failure is None


def test_a_scheduler_with_the_native_cache_decides_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fuzzer's schedulers keep all laws with it; a Python core replays the same plans."""
    injected = []

    def scheduler(*arguments: Any) -> Scheduler:
        made = Scheduler(*arguments)
        injected.append(put_native(made))
        return made

    monkeypatch.setattr(rig, "Scheduler", scheduler)
    for seed in range(8):
        assert explore(MACHINES["scheduler"], seed, FAULTS).failure is None
    assert sum(injected) > 2


# The same answers, nodes and events, call by call


def told(log: list[tuple[Any, ...]]) -> Callable[[RadixOp, RadixNode], None]:
    def listen(op: RadixOp, node: RadixNode) -> None:
        parent = node.parent.node_id if node.parent else -1
        log.append((op, node.node_id, parent, len(node.pages), node.locks))

    return listen


def state(cache: RadixCache) -> tuple[Any, ...]:
    nodes = sorted(
        (
            namespace, n.node_id, n.first, n.key, list(n.pages), n.parent.node_id, n.locks, n.hits,
            n.last_access, n.queued, n.proven, n.withdrawn,
            sorted((k, c.node_id) for k, c in n.children.items()),
        )
        for namespace, n in cache.nodes()
    )  # fmt: skip
    totals = (
        cache.evictable_pages, cache.protected_pages, cache.shared_pages, cache.version,
        cache.lookups, cache.lookup_tokens, cache.hit_tokens,
    )  # fmt: skip
    return nodes, sorted(n.node_id for n in cache.queued_nodes()), totals


class Twins:
    """Two caches that get the same calls."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.size, eviction = int(rng.choice([1, 2, 4, 16])), str(rng.choice(["lru", "lfu"]))
        self.logs: tuple[list[Any], list[Any]] = ([], [])
        self.python = RadixCache(self.size, eviction, told(self.logs[0]))  # type: ignore[arg-type]
        self.native = native_cache(self.size, eviction, told(self.logs[1]))  # type: ignore[arg-type]
        self.held: list[tuple[Any, Any, bytes]] = []
        self.names: list[bytes] = []
        self.page = 0

    def both(self, name: str, *arguments: Any) -> tuple[Any, Any]:
        return getattr(self.python, name)(*arguments), getattr(self.native, name)(*arguments)

    def pages(self, count: int) -> list[int]:
        self.page += count
        return list(range(self.page - count, self.page))

    def step(self) -> None:
        rng, size = self.rng, self.size
        ids = rng.integers(0, 2, rng.integers(0, 8 * size + 1)).astype(np.int32)
        call = rng.integers(0, 11)
        if call < 3:
            ours, theirs = self.both("match", ids, int(rng.integers(0, 2)))
            assert (ours.pages, ours.lookup_tokens) == (theirs.pages, theirs.lookup_tokens)
            self.lock(ours.node, theirs.node)
            if rng.random() < 0.2:
                self.python.forget(ours)
                self.native.forget(theirs)
        elif call < 5 and self.held:
            self.insert(int(rng.integers(len(self.held))), ids)
        elif call == 5:
            self.own()
        elif call == 6 and self.names:
            name, tokens = (
                self.names[int(rng.integers(len(self.names)))],
                int(rng.integers(4 * size)),
            )
            assert len(set(self.both("peek_own", name, tokens))) == 1
            ours, theirs = self.both("match_own", name, tokens)
            assert ours.pages == theirs.pages
        elif call == 7 and self.held:
            ours, theirs, _ = self.held.pop(int(rng.integers(len(self.held))))
            self.python.unlock(ours)
            self.native.unlock(theirs)
        elif call > 8 and self.held:
            ours, theirs, _ = self.held[int(rng.integers(len(self.held)))]
            name = "prove" if call == 9 else "withdraw"
            getattr(self.python, name)(ours)
            getattr(self.native, name)(theirs)
        else:
            ours, theirs = self.both("evict", int(rng.integers(0, 6)))
            assert ours == theirs
            assert len(set(self.both("peek", ids))) == 1
        assert state(self.python) == state(self.native)
        assert self.logs[0] == self.logs[1]

    def lock(self, ours: Any, theirs: Any, name: bytes = b"") -> None:
        assert ours.node_id == theirs.node_id
        self.python.lock(ours)
        self.native.lock(theirs)
        self.held.append((ours, theirs, name))

    def insert(self, at: int, ids: np.ndarray) -> None:
        ours, theirs, name = self.held[at]
        if name:
            if b"" not in ours.children:  # an owner goes on where his text ends
                self.held[at] = *self.both_below(ours, theirs), name
            return
        pages = self.pages(len(ids) // self.size)
        call = "insert_locked" if self.rng.random() < 0.7 else "insert"
        assert self.python.continues(ours, ids) == self.native.continues(theirs, ids)
        mine = getattr(self.python, call)(ours, ids, list(pages))
        its = getattr(self.native, call)(theirs, ids, list(pages))
        assert (mine.duplicate_pages, mine.node.node_id) == (its.duplicate_pages, its.node.node_id)
        if call == "insert_locked":
            self.held[at] = mine.node, its.node, b""

    def both_below(self, ours: Any, theirs: Any) -> tuple[Any, Any]:
        """An own text goes on by a page."""
        page = self.pages(1)
        return self.python.insert_own(ours, list(page)), self.native.insert_own(theirs, list(page))

    def own(self) -> None:
        ours, theirs = self.both("root", 0)
        for _ in range(int(self.rng.integers(1, 6))):
            ours, theirs = self.both_below(ours, theirs)
        assert ours.first == theirs.first
        self.names.append(ours.first)
        self.held.append((ours, theirs, ours.first))


@pytest.mark.parametrize("seed", range(40))
def test_both_caches_answer_and_tell_the_same(seed: int) -> None:
    """Answers, nodes, locks, hits, order of eviction and events are equal after every call."""
    twins = Twins(np.random.default_rng(seed))
    for _ in range(100):
        twins.step()


def test_the_native_cache_has_all_that_the_python_one_has() -> None:
    """What somebody may call or read of a cache and of its nodes is there in both."""
    for python, native in (
        (RadixCache(1), native_cache(1)),
        (RadixCache(1).root(0), native_cache(1).root(0)),
    ):
        names = {name for name in dir(python) if not name.startswith("_")}
        assert names <= set(dir(native))


def test_both_refuse_the_same() -> None:
    """Too few pages and a node without a lock raise the same error."""
    for cache in (RadixCache(2), native_cache(2)):
        with pytest.raises(ValueError, match="2 full pages of ids but only 1 pages"):
            cache.insert(cache.root(0), int32(1, 2, 3, 4), [0])
        leaf = cache.insert(cache.root(0), int32(1, 2), [0]).node
        with pytest.raises(ValueError, match=f"node {leaf.node_id} is not locked"):
            cache.unlock(leaf)
        with pytest.raises(ValueError, match=f"node {leaf.node_id} is not locked"):
            cache.insert_locked(leaf, int32(3, 4), [1])
