"""An estimate before the run comes close to what the run then does."""

from __future__ import annotations

import numpy as np
import pytest

from engine.core.workload import Workload
from workbench.running.estimate import Estimate, estimate, shared_prefix_share
from workbench.running.simulate import Simulation, prepare
from workbench.scenario.source import load_scenario

STEADY = [
    ("quickstart", ()),
    ("quickstart", ("load.request_rate=10",)),
    ("closed_loop", ()),
    ("moe", ()),
    ("small_model_big_gpu", ()),
    ("engine_on_cpu", ()),
    ("chunk_size", ()),
]


def estimated(name: str, *overrides: str) -> tuple[Simulation, Estimate]:
    loaded = load_scenario(name, overrides)
    ready = prepare(loaded, "none")
    return ready, estimate(loaded.scenario, ready.deployment, ready.workload)


@pytest.mark.parametrize(("name", "overrides"), STEADY)
def test_means_of_a_steady_load_come_close(name: str, overrides: tuple[str, ...]) -> None:
    """Throughput within 10 %, TPOT within 30 % of the simulation, and the same verdict."""
    ready, guess = estimated(name, *overrides)
    summary = ready.run().summary
    assert summary is not None
    assert guess.output_throughput == pytest.approx(summary["output_throughput"], rel=0.10)
    assert guess.tpot_ms == pytest.approx(summary["mean_tpot_ms"], rel=0.30)
    assert guess.state == summary["load_state"]


def test_overload_is_foreseen_with_the_capacity() -> None:
    """Beyond the capacity the verdict is overload, and throughput is the capacity, within 10 %."""
    ready, guess = estimated("quickstart", "load.request_rate=90")
    summary = ready.run().summary
    assert summary is not None
    assert guess.state == summary["load_state"] == "overloaded"
    assert guess.offered_rate is not None
    assert guess.offered_rate > guess.capacity == guess.request_rate
    assert guess.output_throughput == pytest.approx(summary["output_throughput"], rel=0.10)


def test_kv_memory_bounds_the_batch() -> None:
    """With too few pages for the clients, requests fill the pool and the others wait."""
    _, few = estimated("kv_pressure")
    _, many = estimated("kv_pressure", "deployment.pools.0.num_pages=50000")
    assert few.kv_percent > 95 > many.kv_percent
    assert few.running < many.running
    assert few.ttft_ms > 100 * many.ttft_ms


def test_more_replicas_serve_more() -> None:
    """The capacity is that of all replicas together."""
    _, one = estimated("quickstart")
    _, two = estimated("quickstart", "deployment.pools.0.replicas=2")
    assert two.capacity == pytest.approx(2 * one.capacity, rel=0.01)
    assert two.tpot_ms < one.tpot_ms


def test_a_cache_that_never_evicts_hits_what_stood_before() -> None:
    """The foreseen share of hits is what a simulation with room for all of them finds."""
    ready, guess = estimated("prefix_cache_chat")
    summary = ready.run().summary
    assert summary is not None
    assert guess.prefix_hit_percent == pytest.approx(summary["prefix_hit_rate_percent"], abs=2)


def test_texts_that_nobody_shares_hit_nothing() -> None:
    """Without segments no prompt repeats another."""
    lengths = np.full(4, 10, np.int32)
    assert shared_prefix_share(Workload.from_lengths(np.zeros(4, np.int64), lengths, lengths)) == 0
