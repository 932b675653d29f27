"""`explain` and `compare` on runs of the simulator itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from run_tables import HandMadeRun, header

from engine.core.config import SchedulerConfig
from engine.core.hardware_spec import load_hardware_spec
from engine.core.model_spec import load_model_spec
from engine.core.workload import Workload
from simulator.cost_model import StepShape
from simulator.roofline import RooflineCostModel
from simulator.world import ReplicaConfig, World
from workbench.analysis.advice import Evidence, advise
from workbench.analysis.attribution import attribute, times_ns
from workbench.analysis.causes import DECODE_OWN
from workbench.analysis.compare import compare_runs
from workbench.analysis.explain import explain_request, explain_run
from workbench.analysis.launches import eager_launch_share
from workbench.metrics.run_metrics import summarize
from workbench.record.header import ReplicaFacts

GRAPHS = (1, 2, 4, 8, 16, 32)
NO_RETRACTIONS = {"retractions": np.zeros(1, np.int64)}


def _workload(seed: int, aborts: bool) -> Workload:
    rng = np.random.default_rng(seed)
    count = 80
    workload = Workload.from_lengths(
        np.cumsum(rng.exponential(1e9 / 60, count)).astype(np.int64),
        rng.integers(20, 600, count).astype(np.int32),
        rng.integers(1, 60, count).astype(np.int32),
        np.full(count, 120, np.int32),
    )
    if aborts:
        after = np.where(rng.random(count) < 0.2, rng.integers(1, 10**9, count), -1)
        workload = replace(workload, abort_after_ns=after)
    return workload


def _simulate(seed: int = 1, fast_forward: bool = True, aborts: bool = False, **settings):
    settings = {"num_pages": 250, "max_running_requests": 16} | settings
    scheduler = SchedulerConfig(
        max_model_len=4096, max_num_batched_tokens=512, cuda_graph_batch_sizes=GRAPHS, **settings
    )
    costs = RooflineCostModel(load_model_spec("Llama-3.1-8B"), load_hardware_spec("h200"))
    world = World(
        _workload(seed, aborts), [ReplicaConfig(scheduler, costs)], fast_forward=fast_forward
    )
    facts = ReplicaFacts(
        num_pages=scheduler.num_pages,
        page_size=scheduler.page_size,
        max_num_batched_tokens=512,
        max_running_requests=scheduler.max_running_requests,
    )
    pool = {
        "replicas": 1,
        "cuda_graph_batch_sizes": list(GRAPHS),
        "max_plans_in_flight": scheduler.max_plans_in_flight,
    }
    scenario = {
        "model": {"name": "Llama-3.1-8B", "weight_dtype": "bf16", "kv_dtype": "bf16"},
        "hardware": {"gpu": "h200"},
        "deployment": {"pools": [pool]},
    }
    run = HandMadeRun(header(replicas=(facts,), scenario=scenario, cost_model=costs.name))
    run.table = world.run().tables.__getitem__
    return run


@pytest.mark.parametrize("plans", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["mixed", "prefill_first"])
def test_causes_of_simulated_requests_sum_exactly(plans, mode):
    """With 1 to 4 plans in flight, aborts and full pages, every ns has one cause."""
    run = _simulate(
        plans, max_plans_in_flight=plans, mode=mode, aborts=True, schedule_conservativeness=0.05
    )
    attribution = attribute(run)
    requests = run.table("requests")
    ttft, e2e = sum(attribution.ttft_ns.values()), sum(attribution.e2e_ns().values())
    answered = requests["first_token_ns"] >= 0
    np.testing.assert_array_equal(ttft[answered], times_ns(requests, "first_token_ns")[answered])
    np.testing.assert_array_equal(e2e, times_ns(requests, "finish_ns"))
    assert all((ns >= 0).all() for ns in attribution.e2e_ns().values())
    summary = summarize(
        {t: run.table(t) for t in ("requests", "decode_spans", "steps")}, run.header
    )
    assert explain_run(run).mean_ttft_ns == pytest.approx(summary["mean_ttft_ms"] * 1e6)


def test_the_cost_model_of_a_record_is_made_again():
    """The header is enough to divide mixed steps by what their decodes alone would have cost."""
    explanation = explain_run(_simulate())
    assert explanation.rule == "by cost model (analytic, uncalibrated)"


def test_a_cost_model_that_no_longer_gives_the_recorded_times_is_not_used():
    """A record whose steps take other times than the model says is divided by tokens."""
    run = _simulate()
    tables = {name: run.table(name) for name in ("requests", "items", "decode_spans", "lifecycle")}
    steps = run.table("steps")
    tables["steps"] = steps | {"gpu_ns": steps["gpu_ns"] - 1}
    run.table = tables.__getitem__
    assert "by token share" in explain_run(run).rule


def _small_model_decoding(graph_batch: int) -> tuple[HandMadeRun, RooflineCostModel]:
    """One request of a small model decodes alone, with steps as long as its cost model says."""
    run = HandMadeRun()
    model = RooflineCostModel(load_model_spec("Qwen3-0.6B"), load_hardware_spec("h200"))
    begin = 0
    for step in range(20):
        prefill = 10 if step == 0 else 0
        shape = StepShape(
            prefill_tokens=prefill, prefill_requests=prefill // 10, prefill_context=0,
            prefill_pairs=0, decode_requests=int(step > 0), decode_tokens=int(step > 0),
            decode_context=step, decode_max_context=step, sampled_tokens=1,
            graph_batch=graph_batch if step else 0, active_experts=-1,
        )  # fmt: skip
        gpu_ns, _, _ = model.step_cost(shape)
        columns = {name: value for name, value in shape._asdict().items() if name[0] != "a"}
        iteration = {"decode_iteration": step - 1} if step else {}
        run.add_step(step, begin, begin, gpu_ns, begin + gpu_ns, **(columns | iteration))
        begin += gpu_ns
    return run, model


@pytest.mark.parametrize(("graph_batch", "advised"), [(0, True), (1, False)])
def test_steps_bound_by_launches_are_not_told_to_save_bytes(graph_batch, advised):
    """Eager decode steps of a small model wait for launches: CUDA Graphs help, bytes do not."""
    run, model = _small_model_decoding(graph_batch)
    share = eager_launch_share(run, {0: model})
    assert (share > 0.5) is advised
    assert advised or share == 0
    evidence = Evidence(
        run.header, run.table("steps"), NO_RETRACTIONS, {}, {DECODE_OWN: 100}, share
    )
    (advice,) = advise(evidence)
    assert ("cuda_graph_batch_sizes" in advice) is advised
    assert ("fewer weight and KV bytes" in advice) is not advised


def test_an_overlapped_host_is_hidden():
    """With two plans in flight the GPU never waits for the host; with one it always does."""
    serial, overlapped = (
        {total.cause: total.share for total in explain_run(run).e2e}
        for run in (_simulate(max_plans_in_flight=1), _simulate(max_plans_in_flight=2))
    )
    assert serial["host"] > 0.01
    assert overlapped["host"] < serial["host"] / 100
    assert "pipeline" not in serial
    assert overlapped["pipeline"] > 0


def test_a_request_s_steps_are_those_that_held_it():
    """The steps blamed for a request's own prefill are those with its items."""
    run = _simulate()
    items = run.table("items")
    for request_id in (0, 30, 79):
        explanation = explain_request(run, request_id, most_steps=1000)
        own = next(share for share in explanation.ttft if share.cause == "prefill_own")
        assert {step.step for step in own.steps} == set(
            items["step"][items["request_id"] == request_id].tolist()
        )


def test_fast_forward_compares_equal():
    """A run that skips over identical steps and one that does not differ in nothing."""
    comparison = compare_runs(_simulate(), _simulate(fast_forward=False), fail_over=0)
    assert comparison.divergence.where == "equal"
    assert comparison.divergence.state is None
    assert {metric.verdict for metric in comparison.metrics} == {"equal"}


def test_a_changed_policy_shows_where_decisions_part():
    """With another chunk size the first difference is a chunk, and all of it is decisions."""
    comparison = compare_runs(_simulate(), _simulate(max_prefill_tokens=128))
    assert comparison.divergence.where == "batch"
    assert any("prefills" in text or "admits" in text for text in comparison.divergence.sentences)
    assert comparison.durations.left_out == 0
    assert all(split.durations_ms == 0 for split in comparison.durations.splits)
