"""Simulated deployments: skipping and running ahead change nothing, routers, times by hand."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from constant_costs import ConstantCosts

from engine.core.config import SchedulerConfig
from engine.core.events import Columns, Detail, EventLog, Segment
from engine.core.hardware_spec import load_hardware_spec
from engine.core.journal import Op, read_calls
from engine.core.model_spec import load_model_spec
from engine.core.workload import NEVER, PromptSegments, Workload
from simulator.cost_model import CostModel
from simulator.replica import Replica
from simulator.roofline import RooflineCostModel
from simulator.router import RouterConfig
from simulator.world import ReplicaConfig, World

MS = 1_000_000
BLOCK = 25  # random scenarios per test case
ROOFLINE = RooflineCostModel(load_model_spec("Llama-3.1-8B"), load_hardware_spec("h200"))


# Skipping and running ahead


def random_workload(rng: np.random.Generator, chance: random.Random) -> Workload:
    """Requests with shared prompts, turns, aborts, priorities and early ends, or some of that."""
    n = chance.randint(5, 60)
    arrival_ns = np.cumsum(rng.exponential(1e9 / chance.choice([5, 30, 200, 1e5]), n))
    prompt, output = rng.integers(1, 400, n), rng.integers(1, 120, n)
    early = rng.random(n) < chance.choice([0, 0.5, 1])
    limit = np.where(early, output + rng.integers(0, 200, n), output)
    keys, lengths = np.empty(2 * n, np.int64), np.empty(2 * n, np.int32)
    keys[0::2], keys[1::2] = rng.integers(0, 4, n), 1000 + np.arange(n)
    lengths[0::2] = np.minimum(prompt, 64)
    lengths[1::2] = prompt - lengths[0::2]
    segments = PromptSegments(np.arange(n + 1) * 2, keys, lengths, 10**5 + np.arange(n), 128_256)
    workload = Workload.from_lengths(arrival_ns.astype(np.int64), prompt, output, limit, segments)
    parent, think_ns = workload.parent.copy(), workload.think_ns.copy()
    if chance.random() < 0.4:
        for child in range(1, n):
            if chance.random() < 0.3:
                parent[child] = chance.randrange(child)
                think_ns[child] = chance.choice([0, 10 * MS, 1000 * MS])
    gives_up = rng.random(n) < chance.choice([0, 0.2])
    return dataclasses.replace(
        workload,
        parent=parent,
        think_ns=think_ns,
        abort_after_ns=np.where(gives_up, rng.integers(0, 3000 * MS, n), NEVER),
        priority=rng.integers(0, 3, n).astype(np.int32),
    )


def random_replicas(chance: random.Random) -> list[ReplicaConfig]:
    """One to three replicas, all alike or each with other memory, limits and step costs."""
    page_size, running = chance.choice([1, 16, 64]), chance.randint(1, 40)
    config = SchedulerConfig(
        num_pages=max(10, chance.choice([900, 3000, 100_000]) // page_size),
        page_size=page_size,
        max_model_len=4096,
        max_num_batched_tokens=max(running, chance.choice([64, 512, 4096])),
        max_running_requests=running,
        policy=chance.choice(["fcfs", "lpm", "priority"]),
        mode=chance.choice(["mixed", "prefill_first"]),
        admission=chance.choice(["estimate", "reserve"]),
        schedule_conservativeness=chance.choice([0.05, 1.0]),
        prefix_cache=chance.random() < 0.7,
        eviction=chance.choice(["lru", "lfu"]),
        max_plans_in_flight=chance.choice([1, 2, 2, 3, 4]),
        cuda_graph_batch_sizes=(1, 2, 4, 8, 16, 32),
    )
    constant = ConstantCosts(chance.choice([MS, 5 * MS]), chance.choice([0, MS, 7 * MS]))
    costs: CostModel = chance.choice([ROOFLINE, ROOFLINE, constant])
    replicas = [ReplicaConfig(config, costs)] * chance.choice([1, 1, 2, 3])
    if len(replicas) > 1 and chance.random() < 0.5:
        other = dataclasses.replace(config, num_pages=2 * config.num_pages)
        replicas = [*replicas[1:], ReplicaConfig(other, ConstantCosts(3 * MS, MS))]
    return replicas


def random_world(seed: int, fast_forward: bool, journal: bool = False) -> World:
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    return World(
        random_workload(rng, chance),
        random_replicas(chance),
        RouterConfig(chance.choice(["round_robin", "least_loaded", "cache_aware"]), 2),
        max_concurrency=chance.choice([None, None, 3]),
        log=EventLog(Detail.PAGES),
        journal=journal,
        fast_forward=fast_forward,
    )


def assert_same(left: Segment, right: Segment) -> None:
    """Equal tables, with the rows of each replica in the same order."""
    assert left.keys() == right.keys()
    for table, columns in left.items():
        mine, yours = by_replica(columns), by_replica(right[table])
        for name, column in mine.items():
            np.testing.assert_array_equal(column, yours[name], f"{table}.{name}")


def by_replica(columns: Columns) -> Columns:
    order = np.argsort(columns["replica"], kind="stable")
    return {name: column[order] for name, column in columns.items()}


@pytest.mark.parametrize("block", range(6))
def test_neither_skipping_nor_running_ahead_changes_anything(block: int) -> None:
    """Every plan, time, page and request is the same in a world that goes from event to event."""
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        fast = random_world(seed, fast_forward=True).run()
        stepwise = random_world(seed, fast_forward=False).run()
        slow = random_world(seed, fast_forward=False)
        for replica in slow.replicas:
            replica._horizon = lambda: 0  # every turn is an event of the world
        plodding = slow.run()
        assert fast.end_ns == stepwise.end_ns == plodding.end_ns
        assert fast.steps == stepwise.steps == plodding.steps
        assert_same(fast.tables, stepwise.tables)
        assert_same(fast.tables, plodding.tables)


def test_skipping_happens() -> None:
    """More than a fifth of all steps are skipped, or the test above would show nothing."""
    steps = skipped = 0
    for seed in range(BLOCK):
        result = random_world(seed, fast_forward=True, journal=True).run()
        steps += result.steps
        for journal in result.journals:
            calls = read_calls(journal.to_array())
            skipped += sum(call.args[0] for call in calls if call.op == Op.ADVANCE)
    assert skipped > 0.2 * steps


# Routers


def prompts_of(groups: list[int], gap_ns: int, output_tokens: int = 4) -> Workload:
    """Prompts of 65 tokens, of which 64 are their group's, one every `gap_ns`."""
    n = len(groups)
    keys = np.column_stack([groups, 1000 + np.arange(n)]).ravel().astype(np.int64)
    lengths = np.tile(np.array([64, 1], np.int32), n)
    segments = PromptSegments(np.arange(n + 1) * 2, keys, lengths, 9000 + np.arange(n), 128_256)
    lengths_of = np.full(n, 65), np.full(n, output_tokens)
    return Workload.from_lengths(np.arange(n) * gap_ns, *lengths_of, segments=segments)


def routed(
    groups: list[int], router: RouterConfig, gap_ns: int, count: int, **changes: int
) -> tuple[list[int], list[int]]:
    """Replica and cached tokens of each request."""
    config = SchedulerConfig(num_pages=1000, max_model_len=4096)
    replicas = [ReplicaConfig(config, ConstantCosts(10 * MS))] * count
    tables = World(prompts_of(groups, gap_ns, **changes), replicas, router).run().tables
    requests = tables["requests"]
    order = np.argsort(requests["request_id"])
    return requests["replica"][order].tolist(), requests["cached_tokens"][order].tolist()


def test_round_robin_takes_turns() -> None:
    """Requests go to the replicas in turn, whatever they hold."""
    assert routed([0] * 6, RouterConfig("round_robin"), 1000 * MS, 3)[0] == [0, 1, 2, 0, 1, 2]


def test_least_loaded_counts_live_requests() -> None:
    """A request goes where the fewest are alive, and to the lowest index among equals."""
    idle = routed([0] * 4, RouterConfig("least_loaded"), 1000 * MS, 3)[0]
    busy = routed([0] * 6, RouterConfig("least_loaded"), 1 * MS, 3)[0]
    assert (idle, busy) == ([0] * 4, [0, 1, 2, 0, 1, 2])


def test_cache_aware_goes_to_the_prefix() -> None:
    """A prompt goes to the replica that has the longest part of it, also from turn to turn."""
    # The second comes while the first is computed, so each group starts on a replica of its own.
    workload = [0, 1, 0, 1, 1, 0]
    gaps = np.array([0, 1, 2000, 3000, 4000, 5000]) * MS
    config = SchedulerConfig(num_pages=1000, max_model_len=4096)
    arrivals = dataclasses.replace(prompts_of(workload, 0), arrival_ns=gaps.astype(np.int64))
    replicas = [ReplicaConfig(config, ConstantCosts(10 * MS))] * 2
    tables = World(arrivals, replicas, RouterConfig("cache_aware", 4)).run().tables
    requests = tables["requests"]
    order = np.argsort(requests["request_id"])
    assert requests["replica"][order].tolist() == workload
    assert requests["cached_tokens"][order].tolist() == [0, 0, 64, 64, 64, 64]


def test_cache_aware_falls_back_when_out_of_balance() -> None:
    """Beyond the threshold of imbalance a prompt goes to the idlest replica instead."""
    many = {"output_tokens": 200}
    tight = routed([0] * 12, RouterConfig("cache_aware", 2), 50 * MS, 2, **many)[0]
    loose = routed([0] * 12, RouterConfig("cache_aware", 50), 50 * MS, 2, **many)[0]
    # The first prompt is computed and cached when the next one comes; from then on hits decide.
    assert loose == [0] * 12
    assert tight[:4] == [0, 0, 0, 1]
    assert abs(tight.count(0) - tight.count(1)) <= 2


# Times by hand


@pytest.mark.parametrize(
    ("gpu_ns", "host_ns", "plans", "ends", "first_token_ns"),
    [
        # One plan in flight: host and GPU take turns.
        (10, 1, 1, [11, 22, 33, 44], 11),
        (1, 10, 1, [11, 22, 33, 44], 11),
        # Two: the host plans behind the step before; only the first planning shows.
        (10, 1, 2, [11, 21, 31, 41], 11),
        (10, 10, 2, [20, 30, 40, 50], 20),
        # The host is the bottleneck: a result waits until the host has planned the next step.
        (1, 10, 2, [20, 30, 40, 41], 20),
        (1, 10, 4, [20, 30, 40, 41], 20),
        (10, 1, 3, [11, 21, 31, 41], 11),
    ],
)
def test_host_and_gpu_by_hand(
    gpu_ns: int, host_ns: int, plans: int, ends: list[int], first_token_ns: int
) -> None:
    """A lone request of four tokens ends when host and GPU, in turn or overlapped, have done it."""
    workload = Workload.from_lengths(np.array([0]), np.array([10]), np.array([4]))
    config = SchedulerConfig(num_pages=10, max_model_len=100, max_plans_in_flight=plans)
    tables = World(workload, [ReplicaConfig(config, ConstantCosts(gpu_ns, host_ns))]).run().tables
    assert tables["steps"]["end_ns"].tolist() == ends
    assert tables["requests"]["first_token_ns"].tolist() == [first_token_ns]
    assert tables["requests"]["finish_ns"].tolist() == [ends[-1]]


def test_who_comes_while_two_steps_are_in_flight_waits_for_both() -> None:
    """An arrival is planned at the next commit and runs behind the step that is queued by then."""
    workload = Workload.from_lengths(np.array([0, 25]), np.array([10, 10]), np.array([6, 3]))
    config = SchedulerConfig(num_pages=10, max_model_len=100)
    tables = World(workload, [ReplicaConfig(config, ConstantCosts(10, 1))]).run().tables
    requests = by_id(tables["requests"])
    assert requests["admitted_ns"].tolist() == [0, 31]
    assert requests["first_token_ns"].tolist() == [11, 51]
    assert requests["finish_ns"].tolist() == [61, 71]


def by_id(columns: Columns) -> Columns:
    order = np.argsort(columns["request_id"])
    return {name: column[order] for name, column in columns.items()}


def test_a_replica_is_what_the_router_sees() -> None:
    """Live requests are those sent here that have not ended, waiting or running."""
    config = SchedulerConfig(num_pages=1000, max_model_len=4096, max_running_requests=1)
    world = World(prompts_of([0] * 5, 0), [ReplicaConfig(config, ConstantCosts(10 * MS))])
    (replica,) = world.replicas
    assert isinstance(replica, Replica)
    world.run_before(1)
    assert replica.live_requests == 5
    world.run()
    assert replica.live_requests == 0
