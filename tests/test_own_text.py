"""Requests without token ids are cached as those would be whose ids nobody else has.

Everything is compared with the same run of requests that have ids of their own: plans, page tables,
trees, counters and all tables of the log.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from constant_costs import ConstantCosts
from core_harness import fresh_seeds
from core_twins import Twins
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.core.config import SchedulerConfig
from engine.core.enums import FinishReason, RadixOp, RequestEvent
from engine.core.events import Detail, EventLog, Segment
from engine.core.invariants import cache_problems
from engine.core.radix_cache import RadixCache
from engine.core.radix_node import PrefixMatch, RadixNode
from engine.core.radix_tree import Eviction
from engine.core.token_ids import SyntheticTokens
from engine.core.workload import PromptSegments, Workload
from simulator.router import RouterConfig
from simulator.world import ReplicaConfig, World

MS = 1_000_000
VOCABULARY = 128_256


def assert_equal_logs(one: Segment, other: Segment) -> None:
    """All columns of all tables are the same, row by row."""
    for table, columns in one.items():
        for name, column in columns.items():
            theirs = other[table][name].tolist()
            assert column.tolist() == theirs, f"{table}.{name}"


class OwnTextTwins(Twins):
    """Twins of which one gets ids that nobody else has, and the other none."""

    def __init__(self, seed: int, ids_skip: bool, **fixed: Any) -> None:
        super().__init__(seed, prefix_cache=True, **fixed)
        self.ids_skip = ids_skip

    def texts(self, request_id: int) -> tuple[SyntheticTokens | None, SyntheticTokens | None]:
        """Ids for the twin that skips decode steps, or for the one that does not."""
        prompt, most, _ = self.lengths[request_id]
        keys = [2 * request_id, 2 * request_id + 1]
        unique = SyntheticTokens(keys, [prompt, most], VOCABULARY)
        return (unique, None) if self.ids_skip else (None, unique)


def alike(seed: int, ids_skip: bool, **fixed: Any) -> Counter[str]:
    """Twins that stay equal after every call; how often what happened."""
    twins = OwnTextTwins(seed, ids_skip, **fixed)
    try:
        twins.play(12)
        fast, slow = twins.fast_log.tables(), twins.slow_log.tables()
        assert_equal_logs(fast, slow)
    except Exception as error:
        error.add_note(f"seed {seed}, ids skip: {ids_skip}, {twins.config}")
        raise
    life = slow["lifecycle"]
    back = life["event"] == RequestEvent.RESUME
    operations = slow["radix"]["op"]
    return Counter(
        retracted=int((life["event"] == RequestEvent.RETRACT).sum()),
        found=int((life["a"][back] > 0).sum()),
        evicted=int((operations == RadixOp.EVICT).sum()),
        skipped=twins.skipped,
    )


@pytest.mark.parametrize("ids_skip", [True, False])
@pytest.mark.parametrize("eviction", ["lru", "lfu"])
@pytest.mark.parametrize("page_size", [1, 16])
def test_schedulers_cannot_tell_own_text_from_ids(
    page_size: int, eviction: str, ids_skip: bool
) -> None:
    """In random worlds with retraction, aborts, failures, transfers, speculation and tenants."""
    pages = {1: 60, 16: 9}[page_size]
    fixed = dict(page_size=page_size, eviction=eviction, num_pages=pages)
    seen = Counter[str]()
    for seed in range(40):
        seen += alike(seed, ids_skip, **fixed)
    assert min(seen[name] for name in ("retracted", "found", "evicted", "skipped")) > 5, seen


def test_schedulers_cannot_tell_in_runs_that_nobody_has_seen() -> None:
    """The same for new seeds, all page sizes and settings."""
    for seed in fresh_seeds(30):
        alike(seed, ids_skip=seed % 2 == 0)


@pytest.mark.parametrize(
    "seed",
    [2392964966, 373123885, 3379167138, 1001184383, 2867835249, 2137952296, 380685761],
)
def test_schedulers_cannot_tell_where_they_once_could(seed: int) -> None:
    """What a request without numbers leaves in the cache is worth nothing, with ids or without."""
    alike(seed, ids_skip=True)
    alike(seed, ids_skip=False)


@st.composite
def loads(draw: st.DrawFn) -> Workload:
    """Requests that come together, with tenants, priorities, patience and early ends."""
    n = draw(st.integers(5, 14))

    def column(least: int, most: int) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(least, most), min_size=n, max_size=n)), np.int32)

    output, more = column(1, 90), column(0, 60)
    gaps = column(0, 8).astype(np.int64) * MS
    workload = Workload.from_lengths(np.cumsum(gaps), column(1, 150), output, output + more)
    patience = column(0, 9)
    return replace(
        workload,
        priority=column(0, 2),
        tenant=column(0, 1),
        abort_after_ns=np.where(patience < 2, 1 + patience.astype(np.int64) * 200 * MS, -1),
    )


def with_ids(workload: Workload) -> Workload:
    """The same requests, each with a text that nobody else has."""
    count = len(workload)
    number = np.arange(count, dtype=np.int64)
    offsets = np.arange(count + 1, dtype=np.int64)
    segments = PromptSegments(
        offsets, 2 * number, workload.prompt_tokens, 2 * number + 1, VOCABULARY
    )
    return replace(workload, segments=segments)


@st.composite
def deployments(draw: st.DrawFn) -> SchedulerConfig:
    """Replicas with too few pages and all that schedulers can be told."""
    size = draw(st.sampled_from([1, 16]))
    running = draw(st.integers(3, 8))
    return SchedulerConfig(
        num_pages=draw(st.integers(210, 300)) // size,
        page_size=size,
        max_model_len=4096,
        max_num_batched_tokens=draw(st.integers(running, 300)),
        max_running_requests=running,
        policy=draw(st.sampled_from(["fcfs", "lpm", "priority"])),
        mode=draw(st.sampled_from(["mixed", "prefill_first"])),
        admission=draw(st.sampled_from(["estimate", "estimate", "reserve"])),
        schedule_conservativeness=draw(st.sampled_from([0.02, 0.02, 1.0])),
        chunked_prefill=draw(st.booleans()),
        eviction=draw(st.sampled_from(["lru", "lfu"])),
        max_plans_in_flight=draw(st.integers(1, 3)),
        check_every=7,
    )


def simulated(
    workload: Workload,
    config: SchedulerConfig,
    replicas: int = 1,
    router: RouterConfig | None = None,
    detail: Detail = Detail.PAGES,
) -> tuple[Segment, list[tuple[int, ...]], list[list[int]]]:
    """A simulation: its tables, the counters of each cache, and its journals."""
    costs = ConstantCosts(5 * MS, MS)
    world = World(
        workload,
        [ReplicaConfig(config, costs)] * replicas,
        router,
        log=EventLog(detail),
        journal=True,
    )
    result = world.run()
    caches = [replica.scheduler.kv.cache for replica in world.replicas]
    counted = [(c.lookups, c.lookup_tokens, c.hit_tokens) for c in caches if c is not None]
    return result.tables, counted, [journal.to_array().tolist() for journal in result.journals]


@settings(
    max_examples=150, deadline=None, database=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(
    workload=loads(),
    config=deployments(),
    replicas=st.integers(1, 2),
    router=st.sampled_from(["round_robin", "cache_aware"]),
    detail=st.sampled_from([Detail.PAGES, Detail.STEPS]),
)
def test_a_simulation_without_ids_equals_one_with_ids_of_their_own(
    workload: Workload, config: SchedulerConfig, replicas: int, router: Any, detail: Detail
) -> None:
    """Every plan's signature, every table and the hit counters, whatever the load and settings."""
    routing = RouterConfig(router, 2)
    without = simulated(workload, config, replicas, routing, detail)
    having = simulated(with_ids(workload), config, replicas, routing, detail)
    assert_equal_logs(without[0], having[0])
    assert without[1:] == having[1:]


def test_a_request_without_ids_finds_its_own_pages_again() -> None:
    """After a retraction it computes only what was evicted; what ended stays cached."""
    workload = Workload.from_lengths(
        np.zeros(6, np.int64), np.full(6, 40, np.int32), np.full(6, 120, np.int32)
    )
    config = SchedulerConfig(
        num_pages=400, page_size=1, max_model_len=400, max_num_batched_tokens=240,
        max_running_requests=6, schedule_conservativeness=0.02,
    )  # fmt: skip
    tables, counted, _ = simulated(workload, config)
    life, steps, requests = tables["lifecycle"], tables["steps"], tables["requests"]
    found = life["a"][life["event"] == RequestEvent.RESUME]
    assert found.max() > 0
    assert found.sum() == steps["hit_tokens"].sum() == counted[0][2]
    assert (requests["cached_tokens"] == 0).all()  # at their first admission
    assert (requests["finish_reason"] == FinishReason.LENGTH).all()
    assert steps["cached_pages"].max() > 0
    assert steps["evicted_pages"].sum() > 0
    off, _, _ = simulated(workload, replace(config, prefix_cache=False))
    assert off["steps"]["cached_pages"].max() == 0
    assert off["requests"]["recomputed_tokens"].sum() > requests["recomputed_tokens"].sum()


@pytest.mark.parametrize("page_size", [1, 2, 16])
def test_nobody_else_can_match_an_own_text(page_size: int) -> None:
    """Not by ids that repeat its name's bytes, nor by another name, nor in another namespace."""
    cache = RadixCache(page_size)
    node = cache.insert_own(cache.root(0), [0, 1])
    name = node.first
    assert len(name) % 4 != 0
    ids = np.frombuffer(name.ljust(12 * page_size, b"\0"), np.int32)
    assert cache.peek(ids) == len(cache.match(ids).pages) == 0
    assert cache.peek(np.zeros(0, np.int32)) == 0
    other = cache.insert_own(cache.root(0), [2])
    assert other.first not in (name, b"")
    assert cache.match_own(name, 9 * page_size).pages == [0, 1]
    assert cache.match_own(name, 9 * page_size, 1).pages == []
    assert cache.match_own(b"", 9 * page_size).pages == []
    assert cache.peek_own(name, 2 * page_size - 1) == page_size
    assert cache.peek_own(name, 9 * page_size, 1) == cache.peek_own(b"", 9 * page_size) == 0
    assert list(cache_problems(cache)) == []


def test_an_own_text_is_cut_where_its_match_ends() -> None:
    """A holder of the shorter part protects that part; the name leads to both."""
    cache = RadixCache(4)
    node = cache.insert_own(cache.root(0), [0, 1, 2])
    name = node.first
    match = cache.match_own(name, 11)
    assert match.pages == [0, 1]
    cache.lock(match.node)
    cache.unlock(node)
    assert cache.evict(9) == [2]
    longer = cache.insert_own(match.node, [7])
    assert cache.match_own(name, 99).pages == [0, 1, 7]
    assert list(cache_problems(cache)) == []
    cache.unlock(longer)
    assert sorted(cache.evict(9)) == [0, 1, 7]
    assert cache.match_own(name, 99).pages == []
    loose = cache.insert_own(cache.root(0), [5])
    cache.unlock(loose)
    with pytest.raises(ValueError, match="not locked"):
        cache.insert_own(loose, [3])


class Holder:
    """Who computes a text in a cache of its own, where an older text of three pages is, too.

    Args:
        own: the text has no ids; else it has some that nobody else has.
        proven: so many of its three pages have given a number.
    """

    def __init__(self, own: bool, proven: int, eviction: Eviction) -> None:
        self.own = own
        self.told: list[tuple[Any, ...]] = []
        self.cache = cache = RadixCache(2, eviction, self._listen)
        cache.insert(cache.root(0), np.full(6, 99, np.int32), [97, 98, 99])
        self.node, self.name = cache.root(0), b""
        self.add(*range(proven))
        cache.prove(self.node)
        self.add(*range(proven, 3))

    def add(self, *pages: int) -> None:
        """The text goes on."""
        if not pages:
            return
        if self.own:
            new = self.node.parent is None
            self.node = self.cache.insert_own(self.node, list(pages))
            self.name = self.node.first if new else self.name
        else:
            start = self.cache.depth_tokens(self.node)
            ids = np.arange(start, start + 2 * len(pages), dtype=np.int32)
            self.node = self.cache.insert_locked(self.node, ids, list(pages)).node

    def find(self) -> PrefixMatch:
        """What is found of the first twelve tokens of the text."""
        if self.own:
            looked, match = self.cache.peek_own(self.name, 12), self.cache.match_own(self.name, 12)
        else:
            ids = np.arange(12, dtype=np.int32)
            looked, match = self.cache.peek(ids), self.cache.match(ids)
        assert looked == 2 * len(match.pages)
        assert list(cache_problems(self.cache)) == []
        return match

    def _listen(self, op: RadixOp, node: RadixNode) -> None:
        parent = node.parent.node_id if node.parent else -1
        self.told.append((op, node.node_id, parent, list(node.pages), node.locks, node.withdrawn))


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
@pytest.mark.parametrize("proven", [0, 1, 2, 3])
def test_an_own_text_without_numbers_is_withdrawn_as_ids_are(
    proven: int, eviction: Eviction
) -> None:
    """Its owner does not find what is not proven, either, and that is evicted before all else."""
    without, having = Holder(True, proven, eviction), Holder(False, proven, eviction)
    for holder in (without, having):
        cache = holder.cache
        cache.withdraw(holder.node)
        told, version = list(holder.told), cache.version
        cache.withdraw(holder.node)
        assert (holder.told, cache.version) == (told, version), "once is enough"
        assert holder.find().pages == list(range(proven))
        assert (cache.protected_pages, cache.depth_tokens(holder.node)) == (3, 6)
        cache.unlock(holder.node)
        assert sorted(cache.evict(3 - proven)) == list(range(proven, 3))
        assert holder.find().pages == list(range(proven))
        assert sorted(cache.clear()) == [*range(proven), 97, 98, 99]
    assert without.told == having.told
    assert without.cache.version == having.cache.version


@pytest.mark.parametrize("proven", [0, 1, 2])
def test_a_text_goes_on_where_it_is_withdrawn_and_beside_that(proven: int) -> None:
    """Who holds what is withdrawn adds to it unseen; what is computed anew is found again."""
    without, having = Holder(True, proven, "lru"), Holder(False, proven, "lru")
    for holder in (without, having):
        cache = holder.cache
        cache.withdraw(holder.node)
        holder.add(3)
        assert cache.protected_pages == 4
        match, withdrawn = holder.find(), holder.node
        assert match.pages == list(range(proven))
        holder.node = match.node
        cache.lock(match.node)
        holder.add(4, 5)
        assert holder.find().pages == [*range(proven), 4, 5]
        cache.unlock(withdrawn)
        cache.unlock(holder.node)
        assert sorted(cache.clear()) == [0, 1, 2, 3, 4, 5, 97, 98, 99]
    assert without.told == having.told
