"""The tables of the simulator itself obey the laws on which metrics and the record rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.core.config import SchedulerConfig
from engine.core.enums import ItemKind
from engine.core.events import Detail, EventLog, Segment
from engine.core.hardware_spec import load_hardware_spec
from engine.core.model_spec import load_model_spec
from engine.core.workload import Workload
from simulator.roofline import RooflineCostModel
from simulator.world import ReplicaConfig, World
from workbench.metrics.latency import IterationTimes, itl, successful
from workbench.metrics.occupancy import Timeline, waiting_by_reason, waiting_for_next_step
from workbench.metrics.run_metrics import summarize
from workbench.metrics.throughput import select
from workbench.record.header import LoadFacts, ReplicaFacts, RunHeader
from workbench.record.run_record import RunReader, RunWriter

Setup = tuple[Segment, RunHeader]


def simulate(plans: int, aborts: bool, num_pages: int, replicas: int = 2) -> Setup:
    """A hundred requests, many of which end before their max_tokens."""
    rng = np.random.default_rng(plans)
    workload = Workload.from_lengths(
        np.cumsum(rng.exponential(1e9 / 150, 100)).astype(np.int64),
        rng.integers(20, 300, 100).astype(np.int32),
        rng.integers(1, 200, 100).astype(np.int32),
        np.full(100, 250, np.int32),
    )
    if aborts:
        after = np.where(rng.random(100) < 0.3, rng.integers(1, 10**9, 100), -1)
        workload = replace(workload, abort_after_ns=after)
    scheduler = SchedulerConfig(
        num_pages=num_pages,
        max_model_len=4096,
        max_num_batched_tokens=512,
        max_running_requests=24,
        max_plans_in_flight=plans,
        schedule_conservativeness=0.05,
    )
    costs = RooflineCostModel(load_model_spec("Llama-3.1-8B"), load_hardware_spec("h200"))
    log = EventLog(Detail.ITEMS)
    World(workload, [ReplicaConfig(scheduler, costs)] * replicas, log=log).run()
    facts = ReplicaFacts(
        num_pages=num_pages, page_size=16, max_num_batched_tokens=512, max_running_requests=24
    )
    header = RunHeader(
        name="simulated",
        kind="simulation",
        detail="items",
        seed=plans,
        model="Llama-3.1-8B",
        gpu="h200",
        cost_model=costs.name,
        replicas=(facts,) * replicas,
        load=LoadFacts(kind="poisson"),
    )
    return log.tables(), header


@pytest.fixture(
    scope="module",
    params=[(1, False, 60), (2, False, 60), (2, True, 60), (4, True, 80), (3, False, 1000)],
    ids=lambda case: f"plans{case[0]}-aborts{case[1]}-pages{case[2]}",
)
def simulated(request: pytest.FixtureRequest) -> Setup:
    return simulate(*request.param)


def test_small_pools_make_the_scheduler_retract(simulated: Setup) -> None:
    """The laws below are tried on requests with more than one stay in the decode batch."""
    tables, header = simulated
    retractions = tables["requests"]["retractions"].sum()
    assert (retractions > 0) == (header.replicas[0].num_pages < 100)


def test_gaps_between_tokens_fill_the_decode_time(simulated: Setup) -> None:
    """output - 1 gaps per request, and they sum to last token - first token, to the nanosecond."""
    tables, _ = simulated
    completed = select(tables["requests"], successful(tables["requests"]))
    gaps = itl(completed, tables["decode_spans"], IterationTimes.of(tables["steps"]))
    assert gaps.count == (completed["output_tokens"] - 1).sum() > 0
    total_ns = (completed["finish_ns"] - completed["first_token_ns"]).sum()
    assert np.dot(gaps.values, gaps.weights) * 1e6 == pytest.approx(total_ns, rel=1e-12)


def test_every_batch_is_the_one_that_its_step_counted(simulated: Setup, tmp_path: Path) -> None:
    """Batches found from items and spans have the token and context sums of the steps table."""
    tables, header = simulated
    writer = RunWriter(tmp_path, "x", header)
    writer.write_segment(tables)
    writer.finish({})
    run, steps = RunReader(writer.path), tables["steps"]
    for row, (replica, step) in enumerate(zip(steps["replica"], steps["step"], strict=True)):
        items = run.items_of_step(int(replica), int(step))
        prefill = items["kind"] == ItemKind.PREFILL
        assert items["num_tokens"][prefill].sum() == steps["prefill_tokens"][row]
        assert items["context_tokens"][prefill].sum() == steps["prefill_context"][row]
        assert (~prefill).sum() == steps["decode_requests"][row]
        assert (items["context_tokens"][~prefill] + 1).sum() == steps["decode_context"][row]


def test_time_in_the_queue_is_explained_whole(simulated: Setup) -> None:
    """Waiting by reason and for the next step sum to all queue time, where none is sent back."""
    tables, _ = simulated
    requests = tables["requests"]
    end_ns = int(max(tables["steps"]["end_ns"].max(), requests["finish_ns"].max()))
    timeline = Timeline.of(tables["steps"], requests, end_ns)
    explained = sum(waiting_by_reason(timeline.within(0, end_ns)).values())
    explained += waiting_for_next_step(timeline, requests)
    admitted = requests["admitted_ns"] >= 0
    queued = (requests["admitted_ns"] - requests["arrival_ns"])[admitted].sum() / 1e9
    if requests["retractions"].sum() == 0 and admitted.all():
        assert explained == pytest.approx(queued)
    else:
        assert explained >= queued - 1e-9


def test_shares_of_a_simulated_run_sum_to_one(simulated: Setup) -> None:
    """GPU, host and idle time cover the run; requests hold no more pages than there are."""
    tables, header = simulated
    summary = summarize(tables, header)
    shares = [summary[f"{name}_percent"] for name in ("gpu_busy", "host_bound", "idle")]
    assert sum(shares) == pytest.approx(100)
    assert min(shares) >= -1e-9
    assert 0 < summary["kv_used_mean_percent"] <= summary["kv_used_max_percent"] <= 100
    sent = len(tables["requests"]["request_id"])
    assert summary["completed"] + summary["failed"] == sent
