"""Laws of `workbench.analysis.compare`: what differs between two runs, and what came of it."""

from __future__ import annotations

import copy
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from constant_costs import ConstantCosts
from hypothesis import given, settings
from run_tables import header, random_run
from table_builders import Ask, S, Server, asks, play, poisson, servers

from engine.core.config import SchedulerConfig
from engine.core.events import TABLES, EventLog, empty_columns
from engine.core.workload import Workload
from simulator.cost_model import StepCosts, StepFeatures
from simulator.waking import WakeFit
from simulator.world import ReplicaConfig, RouterConfig, World
from workbench.analysis.bootstrap import (
    Blocks,
    block_numbers,
    draw_blocks,
    interval_of,
)
from workbench.analysis.compare import compare_runs, render
from workbench.analysis.samples import samples_of
from workbench.metrics import latency
from workbench.metrics.percentiles import WeightedSamples
from workbench.record.header import InputFacts
from workbench.record.run_record import RunReader, RunWriter


class TablesInMemory:
    """A run that was played, not recorded."""

    def __init__(self, played, **changes) -> None:
        facts = {"status": "complete"} | changes
        self.header = msgspec.structs.replace(played.header(), **facts)
        self.tables = played.tables

    def table(self, name):
        return self.tables[name]


LOAD = poisson(200, 300, prompt=40, output=12)


@pytest.fixture(scope="module")
def wide() -> TablesInMemory:
    return TablesInMemory(play(LOAD, Server(slots=6)))


@pytest.fixture(scope="module")
def narrow() -> TablesInMemory:
    return TablesInMemory(play(LOAD, Server(slots=4)))


def _metric(comparison, name):
    return next(metric for metric in comparison.metrics if metric.name == name)


# What was different


def test_a_run_equals_itself(wide):
    """No fact, no metric, no decision and no duration of a run differs from its own."""
    comparison = compare_runs(wide, wide, fail_over=0)
    assert comparison.header == ()
    assert {metric.verdict for metric in comparison.metrics} <= {"equal"}
    assert comparison.divergence.where == "equal"
    assert all(split.delta_ms == 0 for split in comparison.durations.splits)
    assert comparison.regressed == ()
    steps = len(wide.tables["steps"]["step"])
    assert f"all {steps:,} are equal" in render(comparison)


def test_a_changed_setting_is_fair_and_named_once(wide, narrow):
    """The knob under study is shown with both values, unmarked, and nothing else is."""
    (difference,) = compare_runs(wide, narrow).header
    assert (difference.key, difference.a, difference.b) == ("max_running_requests", "6", "4")
    assert not difference.unfair


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 8}, "seed"),
        ({"cost_model": "profile h200-1"}, "cost_model"),
        ({"cost_model_notes": ("calibration not complete",)}, "cost_model_notes"),
        ({"scenario": {"workload": {"kind": "synthetic", "num_requests": 3}}}, "workload.kind"),
    ],
)
def test_other_questions_and_other_clocks_are_unfair(wide, changes, key):
    """A different seed, workload or source of durations is marked and comes first."""
    other = copy.copy(wide)
    other.header = msgspec.structs.replace(wide.header, gpu="other", **changes)
    differences = compare_runs(wide, other).header
    found = {difference.key: difference.unfair for difference in differences}
    assert found[key]
    assert not found["gpu"]
    assert differences[0].unfair


def test_an_edited_profile_is_another_clock(wide):
    """One file, one name, other content: durations come from elsewhere; its path is no matter."""
    runs = []
    for path, content in (("/a/p.json", "1"), ("/a/p.json", "2"), ("/b/p.json", "1")):
        run = copy.copy(wide)
        inputs = {"hardware.profile": InputFacts(path=path, sha256=content)}
        run.header = msgspec.structs.replace(wide.header, inputs=inputs)
        runs.append(run)
    (edited,), (moved,) = (compare_runs(runs[0], other).header for other in runs[1:])
    assert edited.key == "inputs.hardware.profile.sha256"
    assert (edited.unfair, edited.why) == (True, "durations come from different sources")
    assert (moved.key, moved.unfair) == ("inputs.hardware.profile.path", False)


def test_what_only_an_engine_has_is_no_difference_to_a_simulation(wide):
    """Kernels and versions are compared between two engines, not with a simulation."""
    plain, other = copy.copy(wide), copy.copy(wide)
    facts = {"kernels": {"norm": "triton"}}
    plain.header = msgspec.structs.replace(wide.header, kind="engine", engine=facts)
    other.header = msgspec.structs.replace(plain.header, engine={"kernels": {"norm": "torch"}})
    keys = {difference.key for difference in compare_runs(wide, plain).header}
    assert "kind" in keys
    assert not any(key.startswith("engine.") for key in keys)
    assert [d.key for d in compare_runs(plain, other).header] == ["engine.kernels.norm"]


def test_a_simulation_and_an_engine_should_be_set_up_alike(wide):
    """Between executors, even a different pool of pages is unfair."""
    engine = copy.copy(wide)
    fewer = tuple(msgspec.structs.replace(r, num_pages=900) for r in wide.header.replicas)
    engine.header = msgspec.structs.replace(wide.header, kind="engine", replicas=fewer)
    found = {difference.key: difference for difference in compare_runs(wide, engine).header}
    assert found["num_pages"].unfair
    assert (found["num_pages"].a, found["num_pages"].b) == ("1000", "900")


def test_other_requests_are_noticed_whatever_the_header_says(wide):
    """The workload is compared by its requests, not only by its description."""
    other = TablesInMemory(play(LOAD[:150], Server(slots=6)))
    comparison = compare_runs(wide, other)
    assert comparison.header[0].key == "requests"
    assert comparison.header[0].unfair
    assert not comparison.paired


# Metrics and noise


def test_fewer_slots_are_worse_beyond_noise(wide, narrow):
    """Queueing makes TTFT worse and throughput lower, smaller batches make TPOT better."""
    comparison = compare_runs(wide, narrow, fail_over=5)
    assert _metric(comparison, "mean_ttft_ms").verdict == "worse"
    assert _metric(comparison, "output_throughput").verdict == "worse"
    assert _metric(comparison, "mean_tpot_ms").verdict == "better"
    assert {"mean_ttft_ms", "request_throughput"} <= set(comparison.regressed)
    assert "mean_tpot_ms" not in comparison.regressed
    reverse = compare_runs(narrow, wide, fail_over=0)
    assert {name.split("_", 1)[1] for name in reverse.regressed} == {"tpot_ms", "itl_ms"}


def test_only_more_than_the_tolerance_regresses(wide, narrow):
    """A metric that is worse by less than the given percentage does not count."""
    comparison = compare_runs(wide, narrow, fail_over=1e9)
    assert comparison.regressed == ()
    throughput = _metric(comparison, "request_throughput")
    assert throughput.delta_percent is not None
    over = abs(throughput.delta_percent)
    assert throughput.regressed(over * 0.99)
    assert not throughput.regressed(over * 1.01)


def test_differences_between_seeds_are_noise():
    """Two draws of one workload differ by chance, and the verdict says so."""
    runs = [
        TablesInMemory(play(poisson(400, 100, seed=seed), Server()), seed=seed) for seed in (1, 2)
    ]
    comparison = compare_runs(*runs, fail_over=1)
    assert _metric(comparison, "mean_ttft_ms").verdict == "noise"
    assert _metric(comparison, "mean_e2el_ms").verdict == "noise"


def test_point_values_are_those_of_the_summary(wide, narrow):
    """The comparison shows the very figures that each run's summary has."""
    from workbench.metrics.run_metrics import summarize

    comparison = compare_runs(wide, narrow)
    for run, side in ((wide, "a"), (narrow, "b")):
        summary = summarize(run.tables, run.header)
        for metric in comparison.metrics:
            if metric.name != "failed_percent":
                assert getattr(metric, side) == summary[metric.name], metric.name


@settings(max_examples=40, deadline=None)
@given(asks(), servers())
def test_gaps_are_those_of_the_itl_metric(requests, server):
    """The samples behind ITL's interval are the very gaps that the metric pools."""
    run = TablesInMemory(play(requests, server))
    gaps = samples_of(run).gaps
    found = WeightedSamples.of(gaps.ms, gaps.weights)
    requests_table, steps = run.table("requests"), run.table("steps")
    iterations = latency.IterationTimes.of(steps)
    expected = latency.itl(requests_table, run.table("decode_spans"), iterations)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.ranks, expected.ranks)


def test_intervals_hold_the_true_difference_about_as_often_as_they_say():
    """Of many pairs of samples of one distribution, the interval misses 0 in about 5 %."""
    rng = np.random.default_rng(3)
    misses = 0
    for _ in range(200):
        means = []
        for stream in (0, 1):
            values = rng.exponential(1.0, 400)
            block, count = block_numbers(len(values))
            blocks = Blocks(values, np.ones(len(values), np.int64), block, count)
            means.append(blocks.means(draw_blocks(count, stream)))
        misses += interval_of(means[1] - means[0]).excludes_zero
    assert 2 <= misses <= 24


def test_drawn_percentiles_are_those_of_the_drawn_samples():
    """A draw's percentile is numpy's over the samples as often as their block was drawn."""
    values = np.random.default_rng(1).normal(size=50)
    block, count = block_numbers(len(values))
    draws = draw_blocks(count, 0)[:20]
    blocks = Blocks(values, np.ones(50, np.int64), block, count)
    found = blocks.percentiles(draws, [50.0, 99.0])
    for draw, row in zip(draws, found, strict=True):
        np.testing.assert_allclose(row, np.percentile(np.repeat(values, draw[block]), [50, 99]))


def test_comparing_twice_says_the_same(wide, narrow):
    """Noise is drawn with a constant seed."""
    assert compare_runs(wide, narrow, 5) == compare_runs(wide, narrow, 5)


def test_failures_are_a_metric(wide):
    """A run that stops serving is worse even where its latencies look fine."""
    other = copy.copy(wide)
    reason = wide.tables["requests"]["finish_reason"].copy()
    reason[::2] = 3
    other.tables = wide.tables | {"requests": wide.tables["requests"] | {"finish_reason": reason}}
    failed = _metric(compare_runs(wide, other, fail_over=5), "failed_percent")
    assert (failed.a, failed.b, failed.verdict) == (0.0, 50.0, "worse")
    assert failed.regressed(5)


# Durations or decisions


def test_slower_steps_with_equal_decisions_are_durations():
    """Where all decisions are equal, durations are the whole difference."""
    burst = [Ask(0, prompt=20, output=10) for _ in range(20)]
    a = TablesInMemory(play(burst, Server()))
    b = TablesInMemory(play(burst, Server(step_ns=1_200_000)))
    durations = compare_runs(a, b).durations
    assert durations.basis == "A's own steps, as all decisions are equal"
    assert (durations.requests, durations.left_out) == (20, 0)
    for split in durations.splits:
        assert split.delta_ms > 0
        assert split.durations_ms == pytest.approx(split.delta_ms, rel=1e-6), split.name
        assert split.decisions_ms == pytest.approx(0, abs=1e-6)
    (decode,) = (kind for kind in durations.equal_steps if kind.kind == "decode")
    assert decode.gpu_b_ns - decode.gpu_a_ns == 200_000 * decode.steps


def test_other_decisions_under_one_cost_model_are_decisions(wide, narrow):
    """Two simulations with one cost model differ by decisions alone."""
    durations = compare_runs(wide, narrow).durations
    assert durations.left_out == 0
    for split in durations.splits:
        assert split.durations_ms == 0
        assert split.decisions_ms == split.delta_ms != 0


class _TinyServerModel:
    """What a step of the tiny server takes."""

    name = "the tiny server's own"
    power = wake = None

    def step_costs(self, features: StepFeatures) -> StepCosts:
        gpu = 1_000_000 + 10_000 * features.prefill_tokens + 1000 * features.decode_requests
        return StepCosts(gpu, np.zeros_like(gpu), {}, np.zeros(len(gpu), bool))


def test_a_cost_model_of_a_prices_the_batches_of_b(wide):
    """After the first difference, A's cost model says what B's steps would have taken in A."""
    slower = play(LOAD, Server(slots=6, step_ns=1_100_000))
    engine = TablesInMemory(slower, kind="engine", cost_model="measured")
    durations = compare_runs(wide, engine, cost_models_a={0: _TinyServerModel()}).durations
    assert "A's cost model (the tiny server's own) after it" in durations.basis
    tpot = next(split for split in durations.splits if split.name == "mean_tpot_ms")
    assert durations.left_out == 0
    assert tpot.durations_ms == pytest.approx(0.1, rel=1e-3), "each token took 0.1 ms longer"


def test_a_cost_model_of_a_says_when_an_idle_gpu_begins():
    """A step that finds B's GPU idle would begin in A when A's model says: that is a duration."""
    load = [*LOAD, *(Ask(20 * S + at * S) for at in range(10))]
    a, played = TablesInMemory(play(load, Server())), play(load, Server(slots=6))
    later, model = [], _TinyServerModel()
    for lead_ns in (0.0, 3e6):
        model.wake = WakeFit(idle_ns=(0, 1), gpu_ns=(0.0, 0.0), lead_ns=(lead_ns, lead_ns))
        engine = TablesInMemory(played, kind="engine", cost_model="measured")
        durations = compare_runs(a, engine, cost_models_a={0: model}).durations
        assert durations.left_out == 0
        ttft = next(split for split in durations.splits if split.name == "mean_ttft_ms")
        later.append(ttft.durations_ms)
    assert later[0] - later[1] >= 3 * 10 / len(load), "3 ms of each that came to an idle GPU"


def test_a_cost_model_of_a_says_when_the_host_knows(wide):
    """Where a step waits for the commit before, knowing of it 0.1 ms later is a duration."""
    later = play(LOAD, Server(slots=6, step_ns=1_100_000))
    steps = later.tables["steps"]
    later.tables["steps"] = steps | {"gpu_ns": steps["gpu_ns"] - 100_000}
    engine = TablesInMemory(later, kind="engine", cost_model="measured")
    durations = compare_runs(wide, engine, cost_models_a={0: _TinyServerModel()}).durations
    tpot = next(split for split in durations.splits if split.name == "mean_tpot_ms")
    assert tpot.durations_ms == pytest.approx(0.1, rel=1e-3), "each token was known 0.1 ms later"


def test_a_host_that_plans_late_is_slow(wide):
    """Where 0.1 ms pass from a commit to the plan of the next decode step, that is a duration."""
    played = play(LOAD, Server(slots=6, step_ns=1_100_000))
    steps = dict(played.tables["steps"])
    late = 100_000 * (steps["decode_tokens"] > 0)
    for name, sign in (("plan_ns", 1), ("start_ns", 1), ("gpu_ns", -1)):
        steps[name] = steps[name] + sign * late
    played.tables["steps"] = steps
    engine = TablesInMemory(played, kind="engine", cost_model="measured")
    durations = compare_runs(wide, engine, cost_models_a={0: _TinyServerModel()}).durations
    tpot = next(split for split in durations.splits if split.name == "mean_tpot_ms")
    assert tpot.durations_ms == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("plans_in_flight", [1, 2])
def test_results_in_flight_are_late_once(plans_in_flight):
    """A host that knows 0.3 ms later: the first token is, others only if no step is in flight."""
    runs, late_ns, plain = [], 300_000, ConstantCosts(gpu_ns=2_000_000, host_ns=100_000)
    wake = WakeFit(idle_ns=(1,), gpu_ns=(0.0,), lead_ns=(0.0,))
    arrivals = np.array([0, 0, 0, *range(1, 41)]) * S
    size = np.full(len(arrivals), 10)
    for most, result_ns, kind in ((2, 0, "simulation"), (3, late_ns, "engine")):
        config = SchedulerConfig(
            num_pages=100, max_model_len=100, max_running_requests=most,
            max_plans_in_flight=plans_in_flight,
        )  # fmt: skip
        costs = replace(plain, wake=msgspec.structs.replace(wake, result_ns=result_ns))
        log, work = EventLog(), Workload.from_lengths(arrivals, size, size)
        World(work, [ReplicaConfig(config, costs)], RouterConfig("round_robin", 1), log=log).run()
        run = TablesInMemory(play([Ask(0)], Server()), kind=kind, cost_model=kind)
        run.tables = dict(log.tables())
        runs.append(run)
    model = replace(plain, wake=wake)
    splits = compare_runs(*runs, cost_models_a={0: model}).durations.splits
    part = {split.name: split.durations_ms for split in splits}
    assert part["median_ttft_ms"] == pytest.approx(0.3)
    assert part["median_tpot_ms"] == pytest.approx(0.3 if plans_in_flight == 1 else 0, abs=1e-9)


def test_what_cannot_be_told_apart_is_left_out_and_said(wide):
    """Without A's cost model, only requests that ended before the difference are split."""
    slower = play(LOAD, Server(slots=6, step_ns=1_100_000))
    engine = TablesInMemory(slower, kind="engine", cost_model="measured")
    comparison = compare_runs(wide, engine, cost_models_a={})
    durations = comparison.durations
    assert durations.left_out > 0
    assert durations.requests + durations.left_out == len(LOAD)
    assert "they are unknown" in durations.basis
    assert f"{durations.left_out:,} are left out" in render(comparison)


def test_parts_sum_to_the_difference(wide, narrow):
    """Durations and decisions add up to what they split."""
    engine = TablesInMemory(play(LOAD, Server(slots=5, step_ns=900_000)), kind="engine")
    for a, b in ((wide, narrow), (wide, engine), (narrow, engine)):
        for split in compare_runs(a, b).durations.splits:
            assert split.durations_ms + split.decisions_ms == pytest.approx(split.delta_ms)


# Odd runs


class _Nothing:
    def __init__(self) -> None:
        self.header = header()

    def table(self, name):
        return empty_columns(name)


def test_empty_runs_compare():
    """Runs without requests or steps give a comparison without figures."""
    comparison = compare_runs(_Nothing(), _Nothing(), fail_over=5)
    assert comparison.divergence.where == "equal"
    assert comparison.regressed == ()
    assert render(comparison)


def test_an_empty_run_compares_with_a_full_one(wide):
    """What one run lacks is a dash, not a crash."""
    comparison = compare_runs(wide, _Nothing(), fail_over=5)
    ttft = _metric(comparison, "mean_ttft_ms")
    assert ttft.b is None
    assert ttft.verdict == "unjudged"
    assert render(comparison)
    assert render(compare_runs(_Nothing(), wide))


@pytest.mark.parametrize("seed", range(10))
def test_any_two_runs_compare(seed):
    """Random runs, whole or cut off, over one or two replicas, always give a comparison."""
    a = random_run(seed)
    b = random_run(seed + 100, num_replicas=1 + seed % 2, max_steps=20 if seed % 3 else 400)
    assert render(compare_runs(a, b, fail_over=5))


def test_recorded_runs_compare_and_encode(tmp_path, wide, narrow):
    """What the command line does: read two records, compare, print text and JSON."""
    readers = []
    for run in (wide, narrow):
        writer = RunWriter(tmp_path, "tiny", run.header)
        writer.write_segment({name: run.tables[name] for name in TABLES})
        writer.finish({})
        readers.append(RunReader(writer.path))
    comparison = compare_runs(*readers, fail_over=5)
    in_memory = compare_runs(wide, narrow, fail_over=5)
    assert comparison.name_a == f"{readers[0].path} (tiny, simulation)"
    unnamed = {"header": (), "name_a": "", "name_b": ""}
    assert replace(comparison, **unnamed) == replace(in_memory, **unnamed)
    decoded = msgspec.json.decode(msgspec.json.encode(comparison))
    assert decoded["regressed"] == list(comparison.regressed)
