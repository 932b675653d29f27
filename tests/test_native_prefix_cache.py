"""The prefix cache in C++: the laws of the Python one, the very same answers, and whose memory.

The machines and models of `test_radix_cache`, `test_radix_growth` and the fuzzer run on it.
"""

from __future__ import annotations

import gc
import shutil
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_radix_cache
import test_radix_growth
from core_harness import fresh_seeds, machine_settings
from hypothesis.stateful import run_state_machine_as_test
from native_builds import shared_builds

from engine.core.enums import RadixOp
from engine.core.radix_cache import RadixCache, RadixNode
from engine.core.scheduler import Scheduler
from engine.native import build, prefix_cache
from engine.native.cache_choice import put_native
from engine.native.cache_speed import measure_cache_speed
from engine.native.gil import measure_gil
from engine.native.prefix_cache import (
    hash_pages,
    hash_pages_reference,
    native_cache,
)
from workbench.fuzz import cache_machine, rig
from workbench.fuzz.explore import explore
from workbench.fuzz.machines import MACHINES


@pytest.fixture(scope="module", autouse=True)
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension, compiled once."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    folder = shared_builds(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_NATIVE_DIR", str(folder))
        prefix_cache.native_module()
        yield folder


def int32(*ids: int) -> np.ndarray:
    return np.array(ids, np.int32)


# The laws of the Python cache


class NativeMachine(test_radix_cache.CacheMachine):
    make = staticmethod(native_cache)  # type: ignore[assignment]


def test_any_calls_on_the_native_cache_and_on_a_model() -> None:
    """The native cache equals the model of the Python one after any sequence of calls."""
    run_state_machine_as_test(NativeMachine, settings=machine_settings(40, steps=40))


def test_random_calls_on_the_native_cache_and_on_a_model() -> None:
    """The same for long sequences, and for seeds that nobody has seen."""
    seeds = [*range(60), *fresh_seeds(20)]
    assert sum(test_radix_cache.swarm(seed, make=native_cache) for seed in seeds) > 100


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
@pytest.mark.parametrize("page_size", [1, 4])
def test_growing_leaves_of_the_native_cache(page_size: int, eviction: str) -> None:
    """Leaves that grow under a lock equal brute force."""
    test_radix_growth.serve(test_radix_growth.Model(3, page_size, eviction, native_cache))


def test_the_fuzzer_finds_nothing_in_the_native_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzzer's cache machine, with own texts and tenants, breaks no law."""
    monkeypatch.setattr(cache_machine, "RadixCache", native_cache)
    for seed in range(12):
        assert explore(MACHINES["cache"], seed, frozenset()).failure is None


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
        assert explore(MACHINES["scheduler"], seed, frozenset()).failure is None
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
            return
        pages = self.pages(len(ids) // self.size)
        call = "insert_locked" if self.rng.random() < 0.7 else "insert"
        assert self.python.continues(ours, ids) == self.native.continues(theirs, ids)
        mine = getattr(self.python, call)(ours, ids, list(pages))
        its = getattr(self.native, call)(theirs, ids, list(pages))
        assert (mine.duplicate_pages, mine.node.node_id) == (its.duplicate_pages, its.node.node_id)
        if call == "insert_locked":
            self.held[at] = mine.node, its.node, b""

    def own(self) -> None:
        ours, theirs = self.both("root", 0)
        for _ in range(int(self.rng.integers(1, 3))):
            (page,) = self.pages(1)
            ours = self.python.insert_own(ours, [page])
            theirs = self.native.insert_own(theirs, [page])
        assert ours.first == theirs.first
        self.names.append(ours.first)
        self.held.append((ours, theirs, ours.first))


@pytest.mark.parametrize("seed", range(40))
def test_both_caches_answer_and_tell_the_same(seed: int) -> None:
    """Answers, nodes, locks, hits, order of eviction and events are equal after every call."""
    twins = Twins(np.random.default_rng(seed))
    for _ in range(100):
        twins.step()


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


# Whose memory it is


def test_ids_of_a_node_are_a_view_of_its_vector() -> None:
    """`ids` copies nothing: same address, not its own data, and read-only."""
    cache = native_cache(2)
    node: Any = cache.insert(cache.root(0), int32(*range(1000)), list(range(500))).node
    view = node.ids
    assert view.ctypes.data == node.ids_address
    assert not view.flags.owndata
    assert not view.flags.writeable
    assert view.tobytes() == node.key


def test_a_view_outlives_its_node_and_its_cache() -> None:
    """A view keeps the vector alive when node and cache are gone."""
    cache = native_cache(2)
    node: Any = cache.insert(cache.root(0), int32(*range(1000)), list(range(500))).node
    view = node.ids
    assert cache.clear() == list(range(500))
    del node, cache
    gc.collect()
    _ = [np.full(1000, 7, np.int32) for _ in range(50)]  # what was freed would be overwritten
    assert view.tolist() == list(range(1000))


def test_a_view_stays_what_it_was_when_its_node_changes() -> None:
    """Growing, cutting and splitting a node leave earlier views alone."""
    cache = native_cache(2)
    root = cache.root(0)
    cache.lock(root)
    node: Any = cache.insert_locked(root, int32(1, 2, 3, 4), [0, 1]).node
    before = node.ids
    assert cache.insert_locked(node, int32(5, 6), [2]).node is node
    grown = node.ids
    assert (before.tolist(), grown.tolist()) == ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6])
    cache.match(int32(1, 2, 9, 9))
    assert node.ids.tolist() == [3, 4, 5, 6]
    cache.unlock(node)
    assert cache.evict(1) == [2]
    assert node.ids.tolist() == [3, 4]
    assert grown.tolist() == [1, 2, 3, 4, 5, 6]


def test_nodes_die_with_what_holds_them() -> None:
    """A node's object is one and the same while it is cached, and freed when it is evicted."""
    cache = native_cache(1)
    node = cache.insert(cache.root(0), int32(1), [0]).node
    assert cache.match(int32(1)).node is node
    held = sys.getrefcount(node)
    cache.clear()
    assert sys.getrefcount(node) == held - 1
    assert node.parent is None


def test_a_cache_frees_its_listener_and_its_tree() -> None:
    """A deep tree is taken down without recursion, and what the cache held is let go."""

    class Listener:
        def __call__(self, op: RadixOp, node: RadixNode) -> None:
            pass

    listener = Listener()
    gone = weakref.ref(listener)
    cache = native_cache(1, "lru", listener)
    node = cache.root(0)
    for token in range(50_000):  # a chain: a child of a child of a child
        node = cache.insert(node, int32(token), [token]).node
    del cache, listener, node
    gc.collect()
    assert gone() is None


def test_ids_are_read_where_they_lie_or_not_at_all() -> None:
    """Ids of another type or with gaps are a TypeError, never a copy."""
    cache = native_cache(2)
    for wrong in (np.arange(4), np.arange(8, dtype=np.int32)[::2], [1, 2]):
        with pytest.raises(TypeError):
            cache.match(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            hash_pages(wrong, 2)  # type: ignore[arg-type]


# Hashes of pages


@pytest.mark.parametrize("page_size", [1, 3, 16])
@pytest.mark.parametrize("release_gil", [True, False])
def test_hashes_equal_the_reference(page_size: int, release_gil: bool) -> None:
    """Native hashes are those of the Python reference, negative ids and rests included."""
    ids = np.random.default_rng(1).integers(-5, 1 << 30, 1000).astype(np.int32)
    wanted = hash_pages_reference(ids, page_size, parent=99)
    out = hash_pages(ids, page_size, 99, release_gil=release_gil)
    assert out.dtype == np.uint64
    assert np.array_equal(out, wanted)


def test_hashes_chain() -> None:
    """A page's hash depends on all before it, and goes on from any of them."""
    ids = np.arange(64, dtype=np.int32)
    whole = hash_pages(ids, 16)
    assert np.array_equal(hash_pages(ids[32:], 16, int(whole[1])), whole[2:])
    assert len({*whole.tolist(), *hash_pages(ids[16:], 16).tolist()}) == 7


def test_hashes_are_the_vector_that_was_filled() -> None:
    """The result is not copied into an array: it stands on the vector, which it keeps alive."""
    out = hash_pages(np.arange(1600, dtype=np.int32), 16)
    assert not out.flags.owndata
    assert type(out.base).__name__ == "PyCapsule"
    part, wanted = out[50:], out[50:].tolist()
    del out
    gc.collect()
    assert part.tolist() == wanted


# Threads


def test_threads_may_share_a_cache_whose_walks_release_the_lock() -> None:
    """With the lock released in every walk, threads that match and insert break no law."""
    cache = native_cache(4, release_tokens=0)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 2, 400).astype(np.int32) for _ in range(40)]
    errors: list[BaseException] = []

    def work(at: int) -> None:
        try:
            for i in range(200):
                text = texts[(at * 7 + i) % len(texts)]
                match = cache.match(text)
                cache.lock(match.node)
                depth = len(match.pages)
                pages = list(range(1000 * i + depth, 1000 * i + 100))
                end = cache.insert_locked(match.node, text[4 * depth :], pages)
                assert cache.peek(text) == 400
                cache.unlock(end.node)
        except BaseException as error:  # noqa: BLE001 - told to the test below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert cache.protected_pages == 0
    assert cache.evictable_pages == len(cache.clear())


def test_a_released_lock_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside work that keeps the lock a thread is late by about a call; beside other work not."""
    monkeypatch.setattr("engine.native.gil.SECONDS", 0.1)
    rows = {(row.threads, row.released): row for row in measure_gil().scaling}
    assert rows[1, True].late_median_ms < rows[1, False].late_median_ms


def test_both_caches_are_timed_on_the_same_answers() -> None:
    """The comparison that decides has both caches give equal answers, in some time."""
    speed = measure_cache_speed()
    assert speed.equal
    assert min(speed.python_us, speed.native_us) > 0


def test_without_a_compiler_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot be built the error names what is missing."""
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.NativeUnavailableError, match=r"g\+\+ is not installed; it takes pip"):
        native_cache(16)
