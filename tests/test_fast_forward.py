"""Skipping runs of decode steps equals taking them one by one, on schedulers and whole worlds."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
from core_harness import Run, fresh_seeds
from core_twins import Twins

from engine.core.config import UNCHANGEABLE, SchedulerConfig
from engine.core.enums import AdmissionBlock
from engine.core.events import Columns, Detail, EventLog, Segment
from engine.core.hardware_spec import load_hardware_spec
from engine.core.journal import Op, read_calls, replay
from engine.core.model_spec import load_model_spec
from engine.core.scheduler import Scheduler
from engine.core.workload import PromptSegments, Workload
from simulator.cost_model import CostModel, StepCosts, StepFeatures, StepShape
from simulator.power_state import PowerFit
from simulator.roofline import RooflineCostModel
from simulator.router import RouterConfig
from simulator.waking import WakeFit
from simulator.world import ReplicaConfig, SimulationResult, World
from workbench.fuzz.fake_model import Ask
from workbench.fuzz.tiny import random_config


def first_difference(one: Segment, other: Segment) -> str | None:
    """The first table, column and row in which two logs differ; rows by replica, in order."""
    for table, columns in one.items():
        mine, theirs = by_replica(columns), by_replica(other[table])
        for name, column in mine.items():
            if column.tolist() != theirs[name].tolist():
                return f"{table}.{name}: {column.tolist()} or {theirs[name].tolist()}"
    return None


def by_replica(columns: Columns) -> Columns:
    """The rows of a table, those of each replica together: replicas do not wait for each other."""
    order = np.argsort(columns["replica"], kind="stable")
    return {name: column[order] for name, column in columns.items()}


def alike(seed: int, **fixed: object) -> Twins:
    """Twins that end with equal logs, and a journal that replays."""
    twins = Twins(seed, **fixed)
    try:
        twins.play(10)
        assert first_difference(twins.fast_log.tables(), twins.slow_log.tables()) is None
        replay(read_calls(twins.journal.to_array()), Scheduler(twins.config), twins.tokens)
    except Exception as error:
        error.add_note(f"seed {seed}: {twins.config}")
        raise
    return twins


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_advancing_equals_planning_and_committing(depth: int) -> None:
    """`advance(k)` leaves pages, plans, requests, calendars and events as k steps would."""
    skipped = sum(alike(seed, max_plans_in_flight=depth).skipped for seed in range(40))
    assert skipped > 500


def test_advancing_equals_stepping_in_runs_that_nobody_has_seen() -> None:
    """The same for new seeds."""
    for seed in fresh_seeds(15):
        alike(seed)


def test_journals_with_skipped_steps_replay() -> None:
    """The journals that the tests above replay hold every kind of call."""
    journals = [alike(seed).journal.to_array() for seed in range(10)]
    assert {call.op for data in journals for call in read_calls(data)} == set(Op)


def test_steps_are_certain_only_when_nothing_else_goes_on() -> None:
    """Nothing is skipped with prompts to compute, places to fill or results to wait for."""
    config = SchedulerConfig(
        num_pages=99, page_size=1, max_model_len=99, max_num_batched_tokens=8,
        max_running_requests=2, max_plans_in_flight=2,
    )  # fmt: skip
    asks = [Ask(i, (7 + i,) * 3, 9, 99) for i in range(3)]
    run = Run(0, config, asks)
    certain = [run.scheduler.stable_steps(99)]
    run.send(asks[0])
    for _ in range(2):  # its prompt is planned, then it decodes
        run.plan()
        certain.append(run.scheduler.stable_steps(99))
    run.commit()
    certain.append(run.scheduler.stable_steps(99))
    run.send(asks[1])
    certain.append(run.scheduler.stable_steps(99))
    assert certain == [0, 0, 0, 7, 0]
    for _ in range(2):
        run.plan()
        run.commit()
    run.send(asks[2])  # waits, for there is no place
    run.plan()
    run.commit()
    assert run.scheduler.stable_steps(99) == 4
    assert run.scheduler.stable_block_reason() == AdmissionBlock.RUNNING_LIMIT
    run.scheduler.reconfigure(replace(config, policy="priority"), run.now)
    assert run.scheduler.stable_steps(99) == 0


@dataclass(frozen=True)
class HashCosts:
    """Durations that depend on every feature of a step in no regular way."""

    slow_host: bool
    name: str = "hash"
    power: PowerFit | None = None
    wake: WakeFit | None = None

    def _gpu_ns(self, shape: StepShape) -> int:
        mixed = shape.decode_context * 2654435761 + shape.prefill_tokens * 40503
        mixed += shape.decode_max_context * 97 + shape.graph_batch * 31 + shape.sampled_tokens
        return 200_000 + mixed % 1_000_003

    def _host_ns(self, shape: StepShape) -> int:
        return 1_000 + shape.decode_requests * 7919 % 2_003 + self.slow_host * 900_000

    def step_costs(self, features: StepFeatures) -> StepCosts:
        columns = [getattr(features, name).tolist() for name in StepShape._fields]
        shapes = [StepShape(*row) for row in zip(*columns, strict=True)]
        gpu_ns = np.array([self._gpu_ns(shape) for shape in shapes], np.int64)
        host_ns = np.array([self._host_ns(shape) for shape in shapes], np.int64)
        return StepCosts(gpu_ns, host_ns, {"step": gpu_ns}, np.zeros(len(shapes), np.bool_))

    def step_cost(self, shape: StepShape) -> tuple[int, int, bool]:
        return self._gpu_ns(shape), self._host_ns(shape), False

    def decode_run(self, shape: StepShape, num_steps: int) -> tuple[list[int], int, bool]:
        shapes = [
            shape._replace(
                decode_context=shape.decode_context + at * shape.decode_tokens,
                decode_max_context=shape.decode_max_context + at,
            )
            for at in range(num_steps)
        ]
        return [self._gpu_ns(one) for one in shapes], self._host_ns(shape), False


HOT = PowerFit(
    token_ns=70_000.0,
    load=(0.05, 0.3, 0.6),
    slowdown=(0.0, 0.5, 2.0),
    memory_share=0.3,
    light_busy=0.1,
)
SLEEPY = WakeFit(
    idle_ns=(500_000, 90_000_000), gpu_ns=(100_000.0, 900_000.0), lead_ns=(-2e5, 7e5),
    most_host_ns=300_000, result_ns=150_000,
)  # fmt: skip
ROOFLINE = RooflineCostModel(load_model_spec("llama-3.1-8b"), load_hardware_spec("h200"))


def random_workload(seed: int) -> Workload:
    """Bursts or trickles of requests with shared prompts, turns, aborts and priorities."""
    rng, dice = np.random.default_rng(seed), random.Random(seed)
    n = dice.randint(5, 40)
    arrival_ns = np.cumsum(rng.exponential(1e9 / dice.choice([5, 30, 200, 1e5]), n))
    prompt, output = rng.integers(1, 400, n), rng.integers(1, 120, n)
    early = rng.random(n) < dice.choice([0, 0.5, 1])
    limit = np.where(early, output + rng.integers(0, 200, n), output)
    segments = None
    if dice.random() < 0.6:
        common = np.minimum(prompt, 64)
        keys = np.stack([rng.integers(0, 4, n), 1000 + np.arange(n)], 1)
        segments = PromptSegments(
            np.arange(n + 1) * 2,
            keys.ravel().astype(np.int64),
            np.stack([common, prompt - common], 1).ravel().astype(np.int32),
            100_000 + np.arange(n),
            128_256,
        )
    workload = Workload.from_lengths(arrival_ns.astype(np.int64), prompt, output, limit, segments)
    if dice.random() < 0.4:
        parent = [dice.randrange(i) if i and dice.random() < 0.3 else -1 for i in range(n)]
        think_ns = np.array([dice.choice([0, 10**7, 10**9]) for _ in range(n)], np.int64)
        workload = replace(workload, parent=np.array(parent, np.int32), think_ns=think_ns)
    if dice.random() < 0.4:
        patience = np.where(rng.random(n) < 0.2, rng.integers(0, 3 * 10**9, n), -1)
        workload = replace(workload, abort_after_ns=patience)
    return replace(workload, priority=rng.integers(0, 3, n).astype(np.int32))


def random_world(seed: int, costs: CostModel, fast_forward: bool) -> SimulationResult:
    """A whole simulation that is a function of its arguments."""
    dice = random.Random(seed)
    page_size, running = dice.choice([1, 16, 64]), dice.randint(1, 40)
    scheduler = SchedulerConfig(
        num_pages=max(10, dice.choice([900, 3000, 100_000]) // page_size),
        page_size=page_size,
        max_model_len=4096,
        max_num_batched_tokens=max(running, dice.choice([64, 512, 4096])),
        max_running_requests=running,
        policy=dice.choice(["fcfs", "lpm", "priority"]),
        mode=dice.choice(["mixed", "prefill_first"]),
        admission=dice.choice(["estimate", "reserve"]),
        schedule_conservativeness=dice.choice([0.05, 1.0]),
        prefix_cache=dice.random() < 0.7,
        eviction=dice.choice(["lru", "lfu"]),
        max_plans_in_flight=dice.choice([1, 2, 2, 3, 4]),
        cuda_graph_batch_sizes=(1, 2, 4, 8, 16, 32),
    )
    router = RouterConfig(dice.choice(["round_robin", "least_loaded", "cache_aware"]), 2)
    world = World(
        random_workload(seed),
        [ReplicaConfig(scheduler, costs)] * dice.choice([1, 1, 2, 3]),
        router,
        max_concurrency=dice.choice([None, None, 3]),
        log=EventLog(Detail.PAGES),
        fast_forward=fast_forward,
    )
    if dice.random() < 0.4:  # other settings in the middle
        moment = dice.randrange(3 * 10**9)
        world.run_before(moment)
        other = random_config(dice, **{name: getattr(scheduler, name) for name in UNCHANGEABLE})
        world.reconfigure([other] * len(world.replicas), router, moment)
    return world.run()


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize(
    "costs",
    [
        ROOFLINE, HashCosts(slow_host=False), HashCosts(slow_host=True),
        HashCosts(slow_host=False, power=HOT), HashCosts(slow_host=True, power=HOT, wake=SLEEPY),
        HashCosts(slow_host=False, wake=SLEEPY),
    ],
    ids=["roofline", "hash", "slow host", "hot", "slow host, hot, sleepy", "sleepy"],
)  # fmt: skip
def test_a_simulation_that_skips_equals_one_that_does_not(costs: CostModel, block: int) -> None:
    """Every plan, time, request and page event is the same with and without fast-forward."""
    seeds = [*range(block * 8, block * 8 + 8), *fresh_seeds(1)]
    for seed in seeds:
        fast, slow = (random_world(seed, costs, fast_forward) for fast_forward in (True, False))
        assert (fast.steps, fast.end_ns) == (slow.steps, slow.end_ns), seed
        assert first_difference(fast.tables, slow.tables) is None, seed
