"""Pages and prefix cache at any step, against what the record and the core itself say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_runs import DEPLOYMENTS, WORKLOADS, simulation_of

from engine.core.enums import MemoryOp
from engine.core.events import TABLES, Columns, Detail, EventLog, Segment
from engine.core.kv_memory import KvMemory
from engine.core.request import Request
from simulator.world import World
from workbench.fuzz.scheduler_machine import SchedulerTrial
from workbench.fuzz.scheduler_setup import decode
from workbench.tui.store import RunStore
from workbench.tui.store.kv_fold import KvFold
from workbench.tui.store.page_log import CACHE, FREE, PageState
from workbench.tui.store.replica_log import ReplicaLog

PAGES = 40
CASES = Path(__file__).with_name("fuzz_regressions")


def stored(workload: str, deployment: str) -> tuple[RunStore, Segment]:
    """A simulated run in a store, and its tables."""
    simulation = simulation_of(workload, deployment, "pages")
    segments: list[Segment] = []
    simulation.run([segments.append])
    store = RunStore(simulation.header)
    for segment in segments:
        store.append(segment)
    tables = {
        name: {
            key: np.concatenate([s[name][key] for s in segments if name in s] or [np.empty(0, t)])
            for key, t in TABLES[name].items()
        }
        for name in ("memory", "radix", "steps")
    }
    return store, tables


def folded_page_by_page(memory: Columns, step: int) -> np.ndarray:
    """Owner of each page after writing all rows up to a step, one after the other."""
    owner = np.full(PAGES, FREE)
    for at in np.flatnonzero(memory["step"] <= step):
        pages = slice(memory["start_page"][at], memory["start_page"][at] + memory["num_pages"][at])
        gone = memory["op"][at] in (MemoryOp.FREE, MemoryOp.EVICT)
        owner[pages] = FREE if gone else memory["owner"][at]
    return owner


@st.composite
def memory_rows(draw) -> Columns:
    """Rows of `memory` in any order of operations."""
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, 3),
                st.sampled_from([MemoryOp.ALLOC, MemoryOp.FREE, MemoryOp.EVICT]),
                st.integers(0, 9),
                st.integers(0, PAGES - 1),
                st.integers(1, 9),
            ),
            max_size=120,
        )
    )
    steps = np.cumsum([gap for gap, *_ in rows])
    starts = np.array([start for *_, start, _ in rows], np.int64)
    nums = np.minimum(np.array([num for *_, num in rows], np.int64), PAGES - starts)
    return {
        "step": steps.astype(np.int64),
        "replica": np.zeros(len(rows), np.int32),
        "op": np.array([op for _, op, *_ in rows], np.int8),
        "owner": np.array([owner for _, _, owner, *_ in rows], np.int64),
        "start_page": starts.astype(np.int32),
        "num_pages": nums.astype(np.int32),
    }


@given(memory_rows(), st.lists(st.integers(0, 200), max_size=12), st.integers(1, 50))
def test_any_step_is_the_fold_of_all_rows_up_to_it(memory, steps, budget) -> None:
    """Going to a step gives what writing all rows one by one gives, in any order of steps."""
    fold = KvFold(PAGES, 16)
    fold.add(memory, None)
    while fold.backlog:
        fold.fold(budget)
    for step in steps:
        assert fold.pages.after(step).owner.tolist() == folded_page_by_page(memory, step).tolist()


@given(memory_rows(), st.integers(0, 150), st.lists(st.integers(0, 200), max_size=8))
def test_dropped_rows_do_not_change_what_comes_after(memory, dropped, steps) -> None:
    """Once steps are dropped, every later one has the same owners, writers and ages as before."""
    whole, cut = KvFold(PAGES, 16), KvFold(PAGES, 16)
    for fold in (whole, cut):
        fold.add(memory, None)
        fold.fold()
    cut.pages.drop_before(dropped)
    for step in steps:
        if step >= dropped:
            assert_same_pages(whole.pages.after(step), cut.pages.after(step))


def assert_same_pages(a: PageState, b: PageState) -> None:
    for name in ("owner", "node", "writer", "since_step"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_the_map_shows_as_many_free_and_evictable_pages_as_the_steps_say(
    workload: str, deployment: str
) -> None:
    """At every step the pages drawn free and evictable are those that the scheduler counted.

    With several plans in flight a page given back stays taken until the last plan that may touch it
    is done, which the record of pages does not tell; so it may show more free ones, by as many.
    """
    store, _ = stored(workload, deployment)
    for log in store.replicas:
        serial = "max_plans_in_flight: 1" in str(DEPLOYMENTS[deployment])
        for position in range(log.steps.first, log.steps.end, 3):
            row = log.steps.at(position)
            pages, tree = log.pages_after(position), log.tree_after(position)
            free = int((pages.owner == FREE).sum())
            cached = pages.owner == CACHE
            evictable = int((tree.locks_of(pages.node[cached]) == 0).sum())
            if serial:
                assert (free, evictable) == (row["free_pages"], row["cached_pages"])
            assert free >= row["free_pages"]
            assert evictable >= row["cached_pages"]
            assert int(tree.tokens.sum()) == int(cached.sum()) * log.facts.page_size


def test_the_tree_is_that_of_the_cache_in_the_middle_of_runs() -> None:
    """Nodes, parents, tokens, locks and pages are those of the core's own radix cache."""
    simulation = simulation_of("shared prefix", "serial")
    deployment = simulation.deployment
    for share in (0.2, 0.5, 0.8, 1.0):
        log = EventLog(Detail.PAGES)
        configs = [replica.config for replica in deployment.replicas]
        world = World(simulation.workload, configs, deployment.router, log=log)
        world.run_before(int(share * 600_000_000))
        scheduler = world.replicas[0].scheduler
        fold = KvFold(scheduler.config.num_pages, scheduler.config.page_size)
        tables = log.tables()
        fold.add(tables["memory"], tables["radix"])
        fold.fold()
        step = int(scheduler.next_plan_id)
        assert_is_the_cache(scheduler.kv, fold, step)


def test_what_is_withdrawn_stays_in_the_tree_until_it_is_evicted() -> None:
    """Nobody matches it any more, but its pages are cached, and the record says so."""
    case = json.loads((CASES / "no-number-stays-shared.ops.json").read_text(encoding="utf-8"))
    log = EventLog(Detail.PAGES)
    trial = SchedulerTrial(case["seed"], decode(case["setup"]), log)
    for operation in case["operations"]:
        trial.apply(tuple(operation))
    scheduler = trial.rig.scheduler
    while not any(node.withdrawn for _, node in scheduler.kv.cache.nodes()):
        assert scheduler.has_work
        trial._go_on()
    fold = KvFold(scheduler.config.num_pages, scheduler.config.page_size)
    tables = log.tables()
    fold.add(tables["memory"], tables["radix"])
    fold.fold()
    assert_is_the_cache(scheduler.kv, fold, int(scheduler.next_plan_id))


def assert_is_the_cache(kv: KvMemory, fold: KvFold, step: int) -> None:
    """The folded tree and pages are those of a cache; a node's id is the cache's own."""
    assert kv.cache is not None
    tree, pages = fold.nodes.after(step), fold.pages.after(step)
    mine = {
        int(node): (int(parent), int(tokens), int(locks))
        for node, parent, tokens, locks in zip(
            tree.node, tree.parent, tree.tokens, tree.locks, strict=True
        )
        if parent >= 0
    }
    size = kv.pool.page_size
    theirs = {
        node.node_id: (node.parent.node_id, len(node.pages) * size, node.locks)
        for _, node in kv.cache.nodes()
        if node.parent is not None
    }
    assert mine == theirs
    for _, node in kv.cache.nodes():
        found = np.flatnonzero(pages.node == node.node_id)
        assert set(found.tolist()) == set(node.pages)
    free = set(kv.pool.free_list())
    assert set(np.flatnonzero(pages.owner == FREE).tolist()) == free


class Prompts:
    """Token ids that hypothesis chooses."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids

    def ids(self, start: int, stop: int) -> np.ndarray:
        return self._ids[start:stop]


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=14), min_size=1, max_size=25))
def test_splits_are_told_apart_or_put_right(prompts) -> None:
    """A tree of random prompts that share prefixes is the cache's own, unless a split was guessed.

    The record does not say which node a split cut, and nothing may be heard of that node later.
    Then the fold says so; every cached page still belongs to one node.
    """
    log = EventLog(Detail.PAGES)
    kv = KvMemory(400, 1, prefix_cache=True, eviction="lru", events=log)
    run_prompts(kv, prompts)
    tables = log.tables()
    fold = KvFold(400, 1)
    fold.add(tables["memory"], tables["radix"])
    fold.fold()
    tree, pages = fold.nodes.after(0), fold.pages.after(0)
    assert kv.cache is not None
    if fold.uncertain_splits == 0:
        assert_is_the_cache(kv, fold, 0)
    held = sum(len(node.pages) for _, node in kv.cache.nodes())
    assert int((pages.owner == CACHE).sum()) == held
    assert int(tree.tokens.sum()) >= held
    assert np.isin(pages.node[pages.owner == CACHE], tree.node).all()


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=9), min_size=1, max_size=20))
def test_once_all_is_evicted_every_split_was_certain(prompts) -> None:
    """When every node is heard of at last, no split is guessed, and the tree before was right."""
    log = EventLog(Detail.PAGES)
    kv = KvMemory(400, 1, prefix_cache=True, eviction="lru", events=log)
    run_prompts(kv, prompts)
    counted = {name: len(log.tables()[name]["step"]) for name in ("memory", "radix")}
    assert kv.cache is not None
    expected = {node.node_id: (len(node.pages), node.locks) for _, node in kv.cache.nodes()}
    kv.evict(400)
    tables = log.tables()
    for name in ("memory", "radix"):
        tables[name]["step"][counted[name] :] = 1
    fold = KvFold(400, 1)
    fold.add(tables["memory"], tables["radix"])
    fold.fold()
    assert fold.uncertain_splits == 0
    tree = fold.nodes.after(0)
    found = {
        int(node): (int(tokens), int(locks))
        for node, parent, tokens, locks in zip(
            tree.node, tree.parent, tree.tokens, tree.locks, strict=True
        )
        if parent >= 0
    }
    assert found == expected


def run_prompts(kv: KvMemory, prompts: list[list[int]]) -> None:
    """Serve prompts one after the other."""
    for number, tokens in enumerate(prompts):
        request = request_of(number, tokens)
        match = kv.match(request)
        assert match is not None
        assert kv.cache is not None
        kv.cache.lock(match.node)
        kv.attach(request, match)
        kv.grow(request, len(tokens) - len(match.pages))
        kv.publish(request, len(tokens))
        kv.release(request, len(tokens), None)


def request_of(number: int, tokens: list[int]) -> Request:
    ids = Prompts(np.array([*tokens, 9], np.int32))
    return Request(number, len(tokens) + 1, 1, tokens=ids)


def test_a_run_without_pages_is_empty_and_says_so() -> None:
    """A record of detail `items` has no rows to fold; nothing is free or held."""
    simulation = simulation_of("synthetic", "one", "items")
    store = RunStore(simulation.header)
    simulation.run([store.append])
    log: ReplicaLog = store.replicas[0]
    assert not store.records("memory")
    assert len(log.kv.pages) == 0
    assert len(log.tree_after(5)) == 0
