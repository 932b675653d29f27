"""When a run says that offered load exceeds capacity, and when it must not."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from table_builders import Ask, S, Server, play, poisson

from engine.core.enums import FinishReason
from engine.core.events import Columns, empty_columns
from workbench.metrics.overload import LoadVerdict, judge_load
from workbench.metrics.run_metrics import summarize
from workbench.record.header import LoadFacts

SEEDS = range(10)


def queue_table(
    count: int, utilisation: float, servers: int, seed: int, shape: float = 1.0
) -> Columns:
    """A queue with so many servers, gamma arrivals, and lognormal work of mean 1 s."""
    rng = np.random.default_rng(seed)
    work = rng.lognormal(-0.5, 1.0, count)
    arrival = np.cumsum(rng.gamma(shape, 1 / (utilisation * servers * shape), count))
    free = [0.0] * servers
    admitted = np.empty(count)
    for i in range(count):
        admitted[i] = max(heapq.heappop(free), arrival[i])
        heapq.heappush(free, admitted[i] + work[i])
    return _requests(arrival, admitted, admitted + work, work)


def shared_table(count: int, rates: np.ndarray, capacity: float, seed: int) -> Columns:
    """Everything is admitted at once and shares `capacity`, as a batch without limit would."""
    rng = np.random.default_rng(seed)
    work = rng.lognormal(-0.5, 1.0, count)
    arrival = np.cumsum(rng.exponential(1 / (rates * capacity)))
    finish = np.empty(count)
    batch: list[tuple[float, int]] = []
    progress, now, i = 0.0, 0.0, 0
    while i < count or batch:
        speed = min(1.0, capacity / len(batch)) if batch else 0.0
        done = now + (batch[0][0] - progress) / speed if batch else np.inf
        due = arrival[i] if i < count else np.inf
        progress += speed * (min(done, due) - now)
        now = min(done, due)
        if due <= done:
            heapq.heappush(batch, (progress + work[i], i))
            i += 1
        else:
            finish[heapq.heappop(batch)[1]] = now
    return _requests(arrival, arrival, finish, work)


def _requests(
    arrival: np.ndarray, admitted: np.ndarray, finish: np.ndarray, work: np.ndarray
) -> Columns:
    columns = {k: np.zeros(len(arrival), c.dtype) for k, c in empty_columns("requests").items()}
    columns["request_id"][:] = np.arange(len(arrival))
    columns["arrival_ns"][:] = arrival * S
    columns["admitted_ns"][:] = admitted * S
    columns["finish_ns"][:] = finish * S
    columns["finish_reason"][:] = FinishReason.LENGTH
    columns["output_tokens"][:] = np.ceil(work * 100)
    return columns


def judge(requests: Columns, kind: str = "poisson") -> LoadVerdict:
    return judge_load(requests, kind, int(requests["finish_ns"].max()))


@pytest.mark.parametrize("servers", [1, 32])
@pytest.mark.parametrize("count", [500, 3000])
@pytest.mark.parametrize("shape", [0.25, 1.0, 50.0])
def test_a_stable_queue_is_never_called_overloaded(servers: int, count: int, shape: float) -> None:
    """At 80 % load no seed, burstiness or number of servers makes the alarm go off."""
    states = {judge(queue_table(count, 0.8, servers, seed, shape)).state for seed in SEEDS}
    assert states == {"stable"}


@pytest.mark.parametrize(("count", "utilisation"), [(200, 3.0), (500, 2.0), (3000, 1.3)])
@pytest.mark.parametrize("servers", [1, 32])
def test_a_growing_queue_is_called_overloaded(servers: int, count: int, utilisation: float) -> None:
    """Load beyond capacity is found on every seed once the run is long enough to show it."""
    tables = [queue_table(count, utilisation, servers, seed) for seed in SEEDS]
    assert all(judge(table).overloaded for table in tables)


def test_a_batch_that_swells_without_a_queue_is_overloaded_too() -> None:
    """Where every request is admitted at once, the unfinished ones give overload away."""
    tables = [shared_table(3000, np.full(3000, 1.4), 32, seed) for seed in SEEDS]
    assert all(judge(table).overloaded for table in tables)


def test_a_rising_rate_below_capacity_is_no_overload() -> None:
    """More arrivals mean more requests in flight; that alone is not overload."""
    tables = [shared_table(5000, np.linspace(0.1, 0.85, 5000), 100, seed) for seed in SEEDS]
    assert {judge(table).state for table in tables} == {"stable"}


def test_a_short_run_claims_nothing() -> None:
    """When arrivals end before the batch has filled, stable and overloaded look alike."""
    assert {judge(queue_table(100, 0.8, 200, seed)).state for seed in SEEDS} == {"too_short"}
    assert judge(queue_table(10, 5.0, 1, 0)).state == "too_short"
    assert judge_load(empty_columns("requests"), "poisson", 0).state == "too_short"


def test_all_at_once_is_offline() -> None:
    """A batch job has no arrival rate that could exceed capacity."""
    played = play([Ask(0, output=9) for _ in range(100)], Server(slots=2))
    summary = summarize(played.tables, played.header(load=LoadFacts(kind="all_at_once")))
    assert summary["overloaded"] is False
    assert summary["load_verdict"] == "offline: all requests at t=0"


def test_requests_held_back_by_the_clients_cap_are_offline_too() -> None:
    """What counts is when the client had the requests, not when its cap let them go."""
    asks = [Ask(i * 10_000_000, output=9, client_wait_ns=i * 10_000_000) for i in range(100)]
    played = play(asks, Server(slots=2))
    assert judge(played.tables["requests"]).state == "offline"


def test_a_cap_that_hides_the_queue_in_the_client_hides_no_overload() -> None:
    """The backlog of a capped client counts as queue."""
    table = queue_table(1000, 2.0, 8, 3)
    table["client_wait_ns"][:] = table["admitted_ns"] - table["arrival_ns"]
    table["arrival_ns"][:] = table["admitted_ns"]
    assert judge(table).overloaded


def test_a_closed_loop_cannot_be_overloaded() -> None:
    """Clients that wait for answers slow down with the server."""
    assert judge(queue_table(1000, 2.0, 1, 0), "closed_loop").state == "closed_loop"


def test_continuous_batching_at_80_and_200_percent_of_its_capacity() -> None:
    """The verdict holds for the tables of a batching server, and names offered and served rates."""
    server = Server(slots=8)
    flood = play([Ask(0, prompt=16, output=10) for _ in range(400)], server)
    capacity = 400 / (flood.tables["steps"]["end_ns"].max() / S)
    fine = play(poisson(400, 0.8 * capacity, prompt=16, output=10), server)
    assert summarize(fine.tables, fine.header())["load_state"] == "stable"
    much = play(poisson(400, 2 * capacity, prompt=16, output=10), server)
    summary = summarize(much.tables, much.header())
    assert summary["overloaded"] is True
    offered = 400 / ((much.tables["requests"]["arrival_ns"].max() - _first(much.tables)) / S)
    assert f"{offered:,.0f} req/s" in summary["load_verdict"]
    assert "TTFT and E2E have no steady state" in summary["load_verdict"]


def test_rejected_requests_are_no_load() -> None:
    """What can never be served does not pile up."""
    table = queue_table(500, 0.5, 4, 1)
    extra = {name: np.concatenate([column, column]) for name, column in table.items()}
    extra["finish_reason"][500:] = FinishReason.REJECTED
    extra["finish_ns"][500:] = 10_000 * S
    assert judge(extra).state == "stable"


def _first(tables: dict[str, Columns]) -> int:
    return int(tables["requests"]["arrival_ns"].min())
