"""The simulated deployment obeys queueing theory that nobody here wrote.

One replica with one slot and equal steps is the textbook's single server: Lindley's recursion gives
every waiting time exactly, Pollaczek and Khinchine their mean under Poisson arrivals, Kingman and
Marshall bounds under any independent arrivals. Little's law and the conservation of work hold on
every sample path, so they are checked as equalities of integers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from constant_costs import ConstantCosts

from engine.core.config import SchedulerConfig
from engine.core.enums import FinishReason, RequestEvent
from engine.core.events import Columns, Detail, EventLog, Segment
from engine.core.workload import NEVER, Int64, Workload
from simulator.cost_model import CostModel
from simulator.router import RouterConfig
from simulator.world import Outcome, ReplicaConfig, World
from workbench.workload.arrivals import all_at_once, gamma_arrivals, poisson_arrivals

STEP_NS = 10_000_000
HOST_NS = 3_000_000
T_999_OF_19 = 3.883  # two-sided 99.9 % quantile of Student's t with 19 degrees of freedom
RUNS, REQUESTS, WARMUP = 20, 2000, 200


def config(**changes: object) -> SchedulerConfig:
    """One request at a time, one plan at a time, memory for everything."""
    settings: dict[str, object] = dict(
        num_pages=10_000,
        max_model_len=4096,
        max_num_batched_tokens=4096,
        max_running_requests=1,
        max_plans_in_flight=1,
        prefix_cache=False,
    )
    return SchedulerConfig(**{**settings, **changes})  # type: ignore[arg-type]


def requests(arrival_ns: Int64, prompt: int = 8, output: int = 3) -> Workload:
    """Requests of one shape: with a budget that holds the prompt, `output` steps each."""
    n = len(arrival_ns)
    return Workload.from_lengths(arrival_ns, np.full(n, prompt), np.full(n, output))


def tables(
    workload: Workload,
    scheduler: SchedulerConfig,
    costs: CostModel,
    replicas: int = 1,
    **world: object,
) -> Segment:
    """The tables of a run that ended by itself; `requests` in order of id."""
    deployment = [ReplicaConfig(scheduler, costs)] * replicas
    log = EventLog(Detail.STEPS)
    result = World(workload, deployment, log=log, **world).run()  # type: ignore[arg-type]
    assert result.outcome is Outcome.COMPLETE
    order = np.argsort(result.tables["requests"]["request_id"], kind="stable")
    ordered = {name: column[order] for name, column in result.tables["requests"].items()}
    return {**result.tables, "requests": ordered}


def lindley_starts(ready_ns: Int64, service_ns: int) -> list[int]:
    """When a single server begins with each customer, first come first served."""
    starts, free = [], 0
    for ready in ready_ns.tolist():
        starts.append(max(ready, free))
        free = starts[-1] + service_ns
    return starts


def first_starts(steps: Columns, per_request: int) -> Int64:
    """When the GPU began with each request, where each takes `per_request` steps alone."""
    return steps["start_ns"][::per_request]


def mean_and_margin(run_means: list[float]) -> tuple[float, float]:
    """Mean of 20 independent run means, and half its 99.9 % confidence interval."""
    assert len(run_means) == RUNS
    return float(np.mean(run_means)), T_999_OF_19 * float(np.std(run_means, ddof=1)) / RUNS**0.5


class Server(NamedTuple):
    """A single server made of a replica: its settings, and what theory is to expect."""

    plans: int
    host_ns: int
    service_ns: int  # of a request of three steps
    offset_ns: int  # from arrival until the GPU could begin


SERVERS = {
    # Nothing but the GPU takes time.
    "gpu alone": Server(1, 0, 3 * STEP_NS, 0),
    # The host plans each step while the GPU waits: it is part of the service.
    "one plan": Server(1, HOST_NS, 3 * (STEP_NS + HOST_NS), HOST_NS),
    # The host plans a step while the GPU runs the one before: it only delays a request's beginning.
    "two plans": Server(2, HOST_NS, 3 * STEP_NS, HOST_NS),
}


def gpu_starts(server: Server, arrival_ns: Int64) -> Int64:
    """When the GPU began with each request."""
    scheduler = config(max_plans_in_flight=server.plans)
    run = tables(requests(arrival_ns), scheduler, ConstantCosts(STEP_NS, server.host_ns))
    return first_starts(run["steps"], 3)


@cache
def waits(name: str, utilisation: float, shape: float = 1.0) -> list[Int64]:
    """Times in the queue in 20 runs with gamma gaps, but for the first, which find it too empty."""
    server, runs = SERVERS[name], []
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        arrival_ns = gamma_arrivals(rng, REQUESTS, rate_of(utilisation, server), shape)
        waited = gpu_starts(server, arrival_ns) - server.offset_ns - arrival_ns
        runs.append(waited[WARMUP:])
    return runs


def rate_of(utilisation: float, server: Server) -> float:
    return utilisation * 1e9 / server.service_ns


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
@pytest.mark.parametrize("utilisation", [0.3, 0.8, 1.5])
def test_lindley_recursion(server: Server, utilisation: float) -> None:
    """Each request starts when it is there and its predecessor is done, to the nanosecond."""
    rng = np.random.default_rng(1)
    arrival_ns = poisson_arrivals(rng, 1000, rate_of(utilisation, server))
    expected = lindley_starts(arrival_ns + server.offset_ns, server.service_ns)
    assert gpu_starts(server, arrival_ns).tolist() == expected


@pytest.mark.parametrize(
    ("name", "utilisation"),
    [("gpu alone", 0.3), ("gpu alone", 0.6), ("gpu alone", 0.8), ("one plan", 0.6),
     ("two plans", 0.6)],
)  # fmt: skip
def test_pollaczek_khinchine(name: str, utilisation: float) -> None:
    """M/D/1: the mean wait is rho S / (2 (1 - rho)), within the 99.9 % interval of 20 runs."""
    mean, margin = mean_and_margin([float(run.mean()) for run in waits(name, utilisation)])
    expected = utilisation * SERVERS[name].service_ns / (2 * (1 - utilisation))
    assert margin < 0.15 * expected
    assert abs(mean - expected) < margin


def test_poisson_arrivals_see_time_averages() -> None:
    """M/D/1: a request finds the server free with probability 1 - rho, as an outside observer."""
    free = [float((run == 0).mean()) for run in waits("gpu alone", 0.6)]
    mean, margin = mean_and_margin(free)
    assert margin < 0.02
    assert abs(mean - 0.4) < margin


@pytest.mark.parametrize("shape", [0.5, 2.0])
def test_kingman_bound(shape: float) -> None:
    """G/D/1: the mean wait stays under Kingman's bound lambda Var(A) / (2 (1 - rho)).

    Gaps of increasing failure rate (a gamma shape of 1 or more) also keep it above that bound less
    (1 + rho) / (2 lambda): Marshall, Operations Research 16 (1968). Both at 99.9 % confidence.
    """
    utilisation = 0.8
    mean, margin = mean_and_margin(
        [float(run.mean()) for run in waits("gpu alone", utilisation, shape)]
    )
    gap_ns = SERVERS["gpu alone"].service_ns / utilisation
    bound = gap_ns / shape / (2 * (1 - utilisation))
    assert margin < 0.15 * bound
    assert mean + margin < bound
    if shape >= 1:
        assert mean - margin > bound - gap_ns * (1 + utilisation) / 2


def busy_workload(seed: int, aborts: bool = False) -> Workload:
    """Poisson arrivals of mixed lengths, some of which give up."""
    rng = np.random.default_rng(seed)
    n = 400
    arrival_ns = poisson_arrivals(rng, n, 60.0)
    workload = Workload.from_lengths(
        arrival_ns, rng.integers(1, 200, n), output := rng.integers(1, 60, n), output
    )
    if not aborts:
        return workload
    patience = np.where(rng.random(n) < 0.2, rng.integers(0, 10**9, n), NEVER)
    return replace(workload, abort_after_ns=patience)


TIGHT = dict(num_pages=120, max_running_requests=32, max_num_batched_tokens=256)
CROWDS: dict[str, dict[str, object]] = {
    "fcfs": {},
    "retractions": {"schedule_conservativeness": 0.01},
    "reserve": {"admission": "reserve"},
    "two plans": {"max_plans_in_flight": 2, "schedule_conservativeness": 0.01},
    "prefill first": {"mode": "prefill_first", "max_plans_in_flight": 4},
}


def area_under(times: Int64, changes: Int64) -> int:
    """Integral over time of a count that changes by `changes` at `times`, and ends at 0."""
    order = np.argsort(times, kind="stable")
    count = np.cumsum(changes[order])
    assert count[-1] == 0
    return sum((np.diff(times[order]) * count[:-1]).tolist())


def population_area(life: Columns, enter: set[RequestEvent], leave: set[RequestEvent]) -> int:
    """Integral over time of the number of requests between an `enter` and a `leave` event."""
    events = life["event"]
    change = np.isin(events, list(enter)).astype(np.int64) - np.isin(events, list(leave))
    return area_under(life["t_ns"][change != 0], change[change != 0])


E = RequestEvent


@pytest.mark.parametrize("changes", CROWDS.values(), ids=CROWDS)
@pytest.mark.parametrize("cap", [None, 20])
def test_little_of_the_whole_system(changes: dict[str, object], cap: int | None) -> None:
    """The integral of the number of requests in the system is the sum of their times in it."""
    run = tables(
        busy_workload(3, aborts=True), config(**{**TIGHT, **changes}),
        ConstantCosts(STEP_NS, HOST_NS), replicas=2, max_concurrency=cap,
    )  # fmt: skip
    done = run["requests"]
    assert {FinishReason.LENGTH, FinishReason.ABORT} <= set(done["finish_reason"].tolist())
    stays = (done["finish_ns"] - done["arrival_ns"]).tolist()
    assert population_area(run["lifecycle"], {E.ARRIVE}, {E.FINISH, E.REJECT}) == sum(stays)


@pytest.mark.parametrize("changes", CROWDS.values(), ids=CROWDS)
def test_little_of_queue_and_batch(changes: dict[str, object]) -> None:
    """Little's law holds for the queue and for the admitted apart, retractions included."""
    run = tables(busy_workload(4), config(**{**TIGHT, **changes}), ConstantCosts(STEP_NS, HOST_NS))
    done, life = run["requests"], run["lifecycle"]
    waiting = population_area(life, {E.ARRIVE, E.RETRACT}, {E.ADMIT, E.RESUME})
    admitted = population_area(life, {E.ADMIT, E.RESUME}, {E.RETRACT, E.FINISH})
    waited_again = sum(resume_waits(life))
    first_waits = sum((done["admitted_ns"] - done["arrival_ns"]).tolist())
    since_admission = sum((done["finish_ns"] - done["admitted_ns"]).tolist())
    assert first_waits > 0
    if changes == CROWDS["retractions"]:
        assert waited_again > 0
    if changes == CROWDS["reserve"]:
        assert waited_again == 0
    assert waiting == first_waits + waited_again
    assert admitted == since_admission - waited_again


def resume_waits(life: Columns) -> list[int]:
    """Time between each retraction and the resumption that follows it."""
    waits, since = [], dict[int, int]()
    rows = zip(*(life[name].tolist() for name in ("t_ns", "request_id", "event")), strict=True)
    for t_ns, request_id, event in rows:
        if event == E.RETRACT:
            since[request_id] = t_ns
        elif event == E.RESUME:
            waits.append(t_ns - since.pop(request_id))
    return waits


def union_of(begin: Int64, end: Int64) -> int:
    """Total length of a union of intervals."""
    order = np.argsort(begin, kind="stable")
    covered, reach = 0, -1
    for low, high in zip(begin[order].tolist(), end[order].tolist(), strict=True):
        covered += max(0, high - max(low, reach))
        reach = max(reach, high)
    return covered


@pytest.mark.parametrize("changes", CROWDS.values(), ids=CROWDS)
def test_work_conservation(changes: dict[str, object]) -> None:
    """With a host that takes no time, the GPU works exactly while a request is in the system."""
    run = tables(busy_workload(5), config(**{**TIGHT, **changes}), ConstantCosts(STEP_NS))
    done, steps = run["requests"], run["steps"]
    assert union_of(done["arrival_ns"], done["finish_ns"]) == int(steps["gpu_ns"].sum())


@pytest.mark.parametrize("changes", CROWDS.values(), ids=CROWDS)
@pytest.mark.parametrize("host_ns", [0, HOST_NS, 2 * STEP_NS])
def test_one_gpu_runs_one_step_at_a_time(changes: dict[str, object], host_ns: int) -> None:
    """Per replica, steps are planned, start and end in order, and never share the GPU."""
    run = tables(
        busy_workload(6, aborts=True), config(**{**TIGHT, **changes}),
        ConstantCosts(STEP_NS, host_ns), replicas=2,
    )  # fmt: skip
    for replica in (0, 1):
        mine = run["steps"]["replica"] == replica
        steps = {name: column[mine] for name, column in run["steps"].items()}
        assert steps["step"].tolist() == list(range(len(steps["step"])))
        done_ns = steps["start_ns"] + steps["gpu_ns"]
        assert (steps["plan_ns"] + steps["host_ns"] <= steps["start_ns"]).all()
        assert (done_ns <= steps["end_ns"]).all()
        assert (done_ns[:-1] <= steps["start_ns"][1:]).all()
        assert (steps["plan_ns"][:-1] + host_ns <= steps["plan_ns"][1:]).all()
        assert (np.diff(steps["end_ns"]) >= 0).all()
        assert union_of(steps["start_ns"], done_ns) == int(steps["gpu_ns"].sum())


def test_closed_loop_of_one_is_sequential_service() -> None:
    """With one request at a time each follows its predecessor at once, and they add up."""
    n = 200
    output = np.random.default_rng(7).integers(1, 40, n)
    workload = Workload.from_lengths(all_at_once(n), np.full(n, 100), output)
    done = tables(
        workload, config(max_running_requests=64), ConstantCosts(STEP_NS, HOST_NS),
        max_concurrency=1,
    )["requests"]  # fmt: skip
    finish_ns = np.cumsum(output * (STEP_NS + HOST_NS))
    assert done["finish_ns"].tolist() == finish_ns.tolist()
    assert done["arrival_ns"].tolist() == [0, *finish_ns[:-1].tolist()]
    assert done["client_wait_ns"].tolist() == done["arrival_ns"].tolist()


@pytest.mark.parametrize(
    ("changes", "host_ns", "total_ns"),
    [
        # 64 requests in two waves of 32: each one prefill step and 9 decode steps.
        ({"max_running_requests": 32}, 0, 20 * STEP_NS),
        ({"max_running_requests": 32}, HOST_NS, 20 * (STEP_NS + HOST_NS)),
        # Two plans: the host is ahead of the GPU but for the first step.
        ({"max_running_requests": 32, "max_plans_in_flight": 2}, HOST_NS, HOST_NS + 20 * STEP_NS),
        # One prompt fills a step: 64 of them, then 9 decode steps for all.
        ({"max_num_batched_tokens": 64, "mode": "prefill_first"}, 0, (64 + 9) * STEP_NS),
        # Chunks of 16: the same with 4 steps a prompt.
        (
            {"max_num_batched_tokens": 64, "max_prefill_tokens": 16, "mode": "prefill_first"},
            0,
            (256 + 9) * STEP_NS,
        ),
    ],
    ids=["waves", "waves, host", "waves, two plans", "prefill first", "chunks"],
)
def test_batch_throughput(changes: dict[str, object], host_ns: int, total_ns: int) -> None:
    """64 requests of 64 tokens in and 10 out, sent at once, take as many steps as by hand."""
    scheduler = config(**{"max_running_requests": 64, **changes})
    workload = requests(all_at_once(64), prompt=64, output=10)
    done = tables(workload, scheduler, ConstantCosts(STEP_NS, host_ns))["requests"]
    assert int(done["finish_ns"].max()) == total_ns
    assert int(done["output_tokens"].sum()) == 640


def test_pairs_split_over_two_replicas() -> None:
    """Round robin sends one of each simultaneous pair to each replica, which live the same life."""
    arrival_ns = poisson_arrivals(np.random.default_rng(8), 150, 40.0)
    scheduler = config(max_running_requests=4)
    one = tables(requests(arrival_ns), scheduler, ConstantCosts(STEP_NS))["requests"]
    two = tables(
        requests(np.repeat(arrival_ns, 2)), scheduler, ConstantCosts(STEP_NS), replicas=2,
        router=RouterConfig("round_robin"),
    )["requests"]  # fmt: skip
    assert two["replica"].tolist() == [0, 1] * 150
    for name in ("arrival_ns", "admitted_ns", "first_token_ns", "finish_ns"):
        assert two[name][0::2].tolist() == one[name].tolist()
        assert two[name][1::2].tolist() == one[name].tolist()
