"""What the first step after an idle time takes longer: the law, its fit, and who obeys it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from constant_costs import ConstantCosts

from engine.core.config import SchedulerConfig
from engine.core.events import EventLog
from engine.core.workload import Workload
from simulator.fitting.waking import fit_waking
from simulator.samples import WakeSamples
from simulator.waking import SOON_NS, WakeFit, Waking, longer_after_idling
from simulator.world import ReplicaConfig, RouterConfig, World
from workbench.analysis.predicted_steps import predicted_ns, predicted_results_ns

FIT = WakeFit(
    idle_ns=(1_000_000, 3_000_000), gpu_ns=(100_000.0, 300_000.0), lead_ns=(-50_000.0, 250_000.0)
)
COSTS = ConstantCosts(gpu_ns=2_000_000, host_ns=400_000, wake=FIT)
CONFIG = SchedulerConfig(num_pages=100, max_model_len=1000)


def test_tables_are_linear_in_between_and_constant_outside() -> None:
    """Between two idle times the mean of both, beyond them what the nearest says."""
    waking = Waking(FIT)
    assert [waking.longer_ns(idle) for idle in (300_000, 2_000_000, 9_000_000)] == [
        100_000, 200_000, 300_000,
    ]  # fmt: skip
    assert waking.until_begin_ns(2_000_000, 400_000) == 500_000
    assert waking.until_begin_ns(300_000, 20_000) == 0  # not before the plan


def test_a_gpu_does_not_wait_for_more_of_the_host_than_was_measured() -> None:
    """Kernels of a long prompt are launched one by one, while the first of them run."""
    fit = msgspec.structs.replace(FIT, most_host_ns=400_000)
    begins = [Waking(fit).until_begin_ns(2_000_000, host) for host in (300_000, 400_000, 9_000_000)]
    assert begins == [400_000, 500_000, 500_000]
    assert Waking(FIT).until_begin_ns(2_000_000, 9_000_000) == 9_100_000  # it is not known


def test_a_busy_gpu_waits_for_launches_only() -> None:
    """Neither of the two tables is for a step whose like came just before."""
    fit = msgspec.structs.replace(FIT, most_host_ns=400_000)
    for idle in (-9_000_000, 0):
        assert Waking(fit).until_begin_ns(idle, 300_000) == 300_000
        assert Waking(fit).until_begin_ns(idle, 9_000_000) == 400_000
        assert Waking(None).until_begin_ns(idle, 9_000_000) == 9_000_000
        assert Waking(fit).longer_ns(idle) == 0


def test_an_instant_of_idling_costs_next_to_nothing() -> None:
    """From none to those that were measured nothing jumps; an unknown engine has no tables."""
    waking = Waking(FIT)
    assert [waking.longer_ns(idle) for idle in (1, SOON_NS // 2, SOON_NS)] == [1, 50_000, 100_000]
    assert waking.until_begin_ns(SOON_NS // 2, 400_000) == 375_000
    assert waking.wakes(1)
    assert not waking.wakes(0)
    assert not Waking(None).wakes(10**12)
    idle = np.array([-5, 0, SOON_NS // 2, 2_000_000])
    assert longer_after_idling(FIT, idle).tolist() == [0, 0, 50_000, 200_000]
    assert longer_after_idling(None, idle).tolist() == [0, 0, 0, 0]


def simulated(
    costs: ConstantCosts, *arrivals_ms: float, config: SchedulerConfig = CONFIG
) -> dict[str, np.ndarray]:
    """Steps of requests that arrive then, with a prompt of 10 tokens and an output of 3."""
    count, log = len(arrivals_ms), EventLog()
    workload = Workload.from_lengths(
        (np.array(arrivals_ms) * 1e6).astype(np.int64), np.full(count, 10), np.full(count, 3)
    )
    World(workload, [ReplicaConfig(config, costs)], RouterConfig("round_robin", 1), log=log).run()
    return dict(log.tables()["steps"])


def test_only_the_first_step_after_an_idle_time_takes_longer() -> None:
    """Of requests far apart each prompt begins later and takes longer, and no other step does."""
    plain, steps = (simulated(costs, 0, 40, 80) for costs in (replace(COSTS, wake=None), COSTS))
    first = steps["prefill_tokens"] > 0
    assert first.sum() == 3  # before the first one the GPU did nothing for very long
    assert (steps["gpu_ns"] - plain["gpu_ns"]).tolist() == (300_000 * first).tolist()
    delays = steps["start_ns"] - steps["plan_ns"]
    assert delays[first].tolist() == [650_000, 650_000, 650_000]


def test_long_launches_keep_no_gpu_waiting() -> None:
    """A busy GPU goes on as soon as the first launches are there; the host works on beside it."""
    costs = ConstantCosts(
        gpu_ns=2_000_000, host_ns=1_500_000, wake=msgspec.structs.replace(FIT, most_host_ns=400_000)
    )
    steps = simulated(costs, 0)
    busy = steps["start_ns"][1:] == (steps["start_ns"] + steps["gpu_ns"])[:-1]
    assert busy.all()
    assert (np.diff(steps["plan_ns"]) >= costs.host_ns).all()  # it plans when it is free
    waited = steps["start_ns"][1] - steps["plan_ns"][1]
    assert waited < costs.host_ns


def test_recorded_steps_are_predicted_as_they_were_simulated() -> None:
    """The same law tells of a record what steps should have taken."""
    steps = simulated(COSTS, 0, 12.5, 40, 41, 90)
    assert (steps["gpu_ns"] > COSTS.gpu_ns).any()
    assert predicted_ns(COSTS, steps).tolist() == steps["gpu_ns"].tolist()


@pytest.mark.parametrize("plans_in_flight", [1, 2])
@pytest.mark.parametrize("host_ns", [400_000, 3_000_000])
@pytest.mark.parametrize("result_ns", [0, 90_000])
def test_recorded_commits_are_predicted_as_they_were_simulated(
    plans_in_flight: int, host_ns: int, result_ns: int
) -> None:
    """So is when the host knows of each step, whether it waits for that or has still to launch."""
    wake = msgspec.structs.replace(FIT, result_ns=result_ns)
    costs = ConstantCosts(gpu_ns=2_000_000, host_ns=host_ns, wake=wake)
    config = replace(CONFIG, max_plans_in_flight=plans_in_flight)
    steps = simulated(costs, 0, 12.5, 40, 41, 90, config=config)
    results = steps["end_ns"] - steps["start_ns"] - steps["gpu_ns"]
    assert predicted_results_ns(costs, steps).tolist() == results.tolist()


def made_samples(noise: float, count: int = 7) -> tuple[WakeSamples, np.ndarray, np.ndarray]:
    """Steps of an engine that obeys FIT exactly, or nearly."""
    rng = np.random.default_rng(3)
    idle = np.repeat([1_000_000, 3_000_000, 20_000_000], count)
    idle = (idle * rng.uniform(1, 1.2, len(idle))).astype(np.int64)
    gpu, host = np.full(len(idle), 2e6), np.full(len(idle), 4e5)
    longer = np.interp(idle, FIT.idle_ns, FIT.gpu_ns) + noise * rng.standard_normal(len(idle))
    lead = np.interp(idle, FIT.idle_ns, FIT.lead_ns)
    samples = WakeSamples(
        shapes=((10, 1, 0, 55, 10, 0, 0, 0, 0, 0, 1, 0, -1),) * len(idle),
        idle_ns=tuple(idle.tolist()),
        lead_ns=tuple((host + lead).astype(int).tolist()),
        gpu_ns=tuple((gpu + longer).astype(int).tolist()),
    )
    return samples, gpu, host


@pytest.mark.parametrize("noise", [0.0, 10_000.0])
def test_the_fit_finds_what_made_the_samples(noise: float) -> None:
    """Each idle time that was measured is a place of the tables, with its median."""
    fit = fit_waking(*made_samples(noise), result_ns=90_000.4)
    assert fit is not None
    assert (len(fit.idle_ns), fit.result_ns) == (3, 90_000)
    known, found = Waking(FIT), Waking(fit)
    for idle in fit.idle_ns:
        assert found.longer_ns(idle) == pytest.approx(known.longer_ns(idle), abs=15_000)
        assert found.until_begin_ns(idle, 400_000) == pytest.approx(
            known.until_begin_ns(idle, 400_000), abs=25_000
        )


def test_what_a_host_does_after_a_gpu_began_is_beside_it() -> None:
    """After the shortest idle time a GPU begins sooner than the host is done: it waits for that."""
    samples, gpu, host = made_samples(0.0)
    fit = fit_waking(samples, gpu, host)
    assert fit is not None
    waited = Waking(FIT).until_begin_ns(fit.idle_ns[0], 400_000)
    assert waited < 400_000
    assert fit.most_host_ns == pytest.approx(waited, abs=10_000)
    assert Waking(fit).until_begin_ns(0, 400_000) == fit.most_host_ns


def test_too_few_samples_carry_no_fit() -> None:
    """Two steps could be anything."""
    assert fit_waking(*made_samples(0.0, count=2)) is None
    assert fit_waking(None, np.zeros(0), np.zeros(0)) is None
