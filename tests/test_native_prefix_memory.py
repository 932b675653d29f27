"""The prefix cache in C++ copies and leaks nothing, changes no view, and lets threads share it."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest

from engine.core.enums import RadixOp
from engine.core.radix_node import RadixNode
from engine.native.gil import measure_gil
from engine.native.prefix_cache import hash_pages, hash_pages_reference, native_cache

pytestmark = pytest.mark.usefixtures("prefix_cache_builds")


def int32(*ids: int) -> np.ndarray:
    return np.array(ids, np.int32)


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


def turns_beside(tokens: np.ndarray[tuple[int], np.dtype[np.int32]], *, released: bool) -> int:
    """How often this thread gets a turn while another is in one call."""
    started, done = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        hash_pages(tokens, 16, release_gil=released)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    turns = 0
    while not done.is_set():
        turns += 1
        time.sleep(0)  # gives the lock away, to whoever waits for it
    thread.join()
    return turns


def test_a_released_lock_lets_others_run() -> None:
    """Beside a call that keeps the lock nothing runs but before and after it."""
    tokens = np.arange(1 << 25, dtype=np.int32)
    kept, released = (min(turns_beside(tokens, released=each) for _ in range(3))
                      for each in (False, True))  # fmt: skip
    assert released > 10 * kept + 10


def test_a_released_lock_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one thread and on as many as there are cores, with the lock and without."""
    monkeypatch.setattr("engine.native.gil.SECONDS", 0.02)
    found = measure_gil()
    assert {(row.threads, row.released) for row in found.scaling} >= {(1, True), (1, False)}
    assert all(row.calls_per_s > 0 and row.late_most_ms >= 0 for row in found.scaling)
