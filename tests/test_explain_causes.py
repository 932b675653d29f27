"""How `workbench.analysis.explain` divides the latency of a request into causes."""

from __future__ import annotations

import numpy as np
import pytest
from explained_runs import add_finished, ns_by_cause, retracted, three_requests
from hypothesis import given, settings
from hypothesis import strategies as st
from run_tables import HandMadeRun, header, random_run
from table_builders import asks, play, servers

from engine.core.enums import AdmissionBlock, RequestEvent
from simulator.cost_model import StepCosts, StepFeatures
from workbench.analysis.attribution import attribute, times_ns
from workbench.analysis.explain import explain_request, render

GPU_CAUSES = (
    "pipeline",
    "prefill_own",
    "prefill_others",
    "recompute",
    "decode_own",
    "decode_others",
)


def test_prefill_is_divided_by_tokens():
    """A request pays for its own tokens; batched prefills and decodes of others are theirs."""
    causes = ns_by_cause(explain_request(three_requests(), 1).ttft)
    # 60 ns of step 1: 1 decode and 5 prefill tokens; 77 ns of step 2: 1 decode, 5 own, 5 of r2.
    assert causes == {
        "queue_step_in_flight": 70,
        "prefill_own": 50 + 35,
        "prefill_others": 35,
        "decode_others": 10 + 7,
        "host": 10 + 10 + 5 + 8,
    }


def test_waiting_is_put_down_to_the_reason_of_each_plan():
    """Until the scheduler looks it is the step in flight, then what the plan says."""
    causes = ns_by_cause(explain_request(three_requests(), 2).ttft)
    assert causes["queue_step_in_flight"] == 60
    assert causes["queue_running_limit"] == 80
    assert sum(causes.values()) == 230


def test_a_decoding_request_pays_for_prefills_beside_it():
    """After its first token: its decodes, the prefill part of those steps, and host time."""
    explanation = explain_request(three_requests(), 0)
    assert ns_by_cause(explanation.ttft) == {"prefill_own": 100, "host": 20}
    assert ns_by_cause(explanation.after_first) == {
        "decode_own": 10 + 7,
        "prefill_others": 50 + 70,
        "host": 10 + 15 + 8,
    }


def test_steps_to_blame_are_named_with_who_was_in_them():
    """Each cause names its costliest steps, with the other requests' tokens."""
    explanation = explain_request(three_requests(), 0)
    prefill = next(share for share in explanation.after_first if share.cause == "prefill_others")
    worst, second = prefill.steps
    assert (worst.step, worst.ns, worst.prefills) == (2, 70, ((1, 5), (2, 5)))
    assert (second.step, second.ns, second.prefills) == (1, 50, ((1, 5),))
    assert worst.decode_requests == 0, "the one decode of step 2 is its own"


def test_time_behind_an_earlier_step_is_pipeline():
    """A request planned while another step has the GPU waits for that step's end."""
    run = HandMadeRun()
    run.add_step(0, plan=0, start=0, gpu=100, end=105, prefill_tokens=4)
    run.add_step(1, plan=20, start=100, gpu=50, end=155, prefill_tokens=4)
    run.add_item(0, 0, 4)
    run.add_item(1, 1, 4)
    add_finished(run, 0, 0, 0, 105, 105, output_tokens=1)
    add_finished(run, 1, 10, 20, 155, 155, output_tokens=1)
    assert ns_by_cause(explain_request(run, 1).ttft) == {
        "queue_step_in_flight": 10,
        "pipeline": 80,
        "prefill_own": 50,
        "host": 5,
    }


def test_a_prefill_only_step_stalls_decodes():
    """A step without any decode is prefill of others for a request that decodes."""
    run = three_requests()
    run.rows["steps"][2].update(decode_requests=0, decode_tokens=0, decode_iteration=-1)
    run.rows["decode_spans"][0].update(scheduled=1)
    assert ns_by_cause(explain_request(run, 0).after_first)["prefill_others"] == 50 + 77


def test_what_had_been_computed_before_a_retraction_is_recompute():
    """Tokens below the furthest computed position count as computed again, the rest as own."""
    causes = ns_by_cause(explain_request(retracted(), 0).ttft)
    # Resumed at 4 of 10 with 6 computed before: 2 of the 6 tokens are computed again.
    assert causes == {"prefill_own": 100 + 67, "recompute": 33, "queue_again": 100}


def test_after_the_first_token_every_prefill_is_recompute():
    """A request that has given tokens only prefills what it lost."""
    causes = ns_by_cause(explain_request(retracted(), 0).after_first)
    assert causes == {"decode_own": 100, "queue_again": 100, "recompute": 100}


class _LinearModel:
    """GPU time 1000 + 10 per prefill token + 5 per decode, or 700 + 5 per row on a CUDA Graph."""

    name = "linear"
    power = None

    def step_costs(self, features: StepFeatures) -> StepCosts:
        eager = 1000 + 10 * features.prefill_tokens + 5 * features.decode_requests
        gpu = np.where(features.graph_batch > 0, 700 + 5 * features.graph_batch, eager)
        return StepCosts(gpu, np.zeros_like(gpu), {}, np.zeros(len(gpu), bool))


def _mixed_step(gpu: int, **facts) -> HandMadeRun:
    run = HandMadeRun(header(**facts))
    run.add_step(0, 0, 0, 1000, 1000, prefill_tokens=1)
    run.add_step(
        1, 1000, 1000, gpu, 1000 + gpu, prefill_tokens=20, decode_requests=10, decode_iteration=0
    )
    run.add_item(0, 0, 1)
    run.add_span(0, token=1000, first=0, scheduled=1)
    add_finished(run, 0, 0, 0, 1000, 1000 + gpu)
    return run


def test_the_cost_model_tells_what_decodes_alone_would_cost():
    """With a cost model the decode part is its price of the step without prefill."""
    explanation = explain_request(_mixed_step(gpu=1250), 0, cost_models={0: _LinearModel()})
    assert ns_by_cause(explanation.after_first) == {"decode_own": 1050, "prefill_others": 200}
    assert "linear" in explanation.rule


def test_measured_steps_are_divided_in_the_model_s_proportion():
    """A recorded duration that differs from the model's is divided as the model divides its own."""
    explanation = explain_request(_mixed_step(gpu=2500), 0, cost_models={0: _LinearModel()})
    assert ns_by_cause(explanation.after_first) == {"decode_own": 2100, "prefill_others": 400}


def test_decodes_alone_would_have_run_on_a_cuda_graph():
    """The decode part of an eager mixed step is priced with the graph that fits the decodes."""
    pools = [{"replicas": 1, "cuda_graph_batch_sizes": [8, 16]}]
    run = _mixed_step(gpu=1250, scenario={"deployment": {"pools": pools}})
    explanation = explain_request(run, 0, cost_models={0: _LinearModel()})
    assert ns_by_cause(explanation.after_first) == {"decode_own": 780, "prefill_others": 470}


def test_without_a_cost_model_tokens_tell_and_the_text_says_so():
    """The rule that divided GPU time stands in every explanation."""
    explanation = explain_request(_mixed_step(gpu=1200), 0, cost_models={})
    assert ns_by_cause(explanation.after_first) == {"decode_own": 400, "prefill_others": 800}
    assert "by token share" in render(explanation)


@pytest.mark.parametrize("seed", range(60))
def test_causes_sum_to_ttft_and_e2e_exactly(seed):
    """Over all causes, in ns, nothing is lost and nothing is counted twice."""
    run = random_run(seed, max_steps=15 if seed % 4 == 0 else 400)
    _assert_sums(run)


@settings(max_examples=60, deadline=None)
@given(asks(), servers())
def test_causes_sum_exactly_for_a_served_load(requests, server):
    """The same for runs of a first-come-first-served server."""
    played = play(requests, server)
    run = HandMadeRun(played.header())
    run.table = played.tables.__getitem__
    _assert_sums(run)


def _assert_sums(run) -> None:
    attribution = attribute(run)
    requests = run.table("requests")
    ttft = sum(attribution.ttft_ns.values())
    e2e = sum(attribution.e2e_ns().values())
    answered = requests["first_token_ns"] >= 0
    ended = requests["finish_ns"] >= 0
    np.testing.assert_array_equal(ttft[answered], times_ns(requests, "first_token_ns")[answered])
    np.testing.assert_array_equal(e2e[ended], times_ns(requests, "finish_ns")[ended])
    for cause, ns in attribution.e2e_ns().items():
        assert (ns >= 0).all(), cause


@pytest.mark.parametrize("seed", range(25))
def test_one_request_s_view_agrees_with_the_run_s(seed):
    """The step-by-step account of a request has the very causes that the sums over steps give."""
    run = random_run(seed)
    attribution = attribute(run)
    for row, request_id in enumerate(run.table("requests")["request_id"].tolist()):
        explanation = explain_request(run, request_id, most_steps=10**6)
        for shares, whole in (
            (explanation.ttft, attribution.ttft_ns),
            (explanation.after_first, attribution.after_ns),
        ):
            assert ns_by_cause(shares) == {c: int(ns[row]) for c, ns in whole.items() if ns[row]}
            for share in shares:
                assert sum(step.ns for step in share.steps) == share.ns


@pytest.mark.parametrize("seed", range(25))
def test_causes_agree_with_asking_every_nanosecond(seed):
    """Waiting by reason, GPU, host and idle time are what a clerk finds who asks ns by ns."""
    run = random_run(seed)
    attribution = attribute(run)
    for row in range(len(run.rows["requests"])):
        expected = _ask_every_ns(run, run.rows["requests"][row])
        found = {cause: int(ns[row]) for cause, ns in attribution.e2e_ns().items() if ns[row]}
        gpu = sum(found.pop(cause, 0) for cause in GPU_CAUSES)
        assert {**found, **({"gpu": gpu} if gpu else {})} == expected


def _ask_every_ns(run: HandMadeRun, request: dict[str, int]) -> dict[str, int]:
    steps = [step for step in run.rows["steps"] if step["replica"] == request["replica"]]
    end = request["finish_ns"]
    if end < 0:
        times = [step["end_ns"] for step in run.rows["steps"]]
        times += [r[name] for r in run.rows["requests"] for name in ("arrival_ns", "finish_ns")]
        end = max(times)
    found: dict[str, int] = {}
    for t in range(request["arrival_ns"], end):
        cause = _cause_at(t, run, request, steps)
        found[cause] = found.get(cause, 0) + 1
    return found


def _cause_at(t: int, run: HandMadeRun, request: dict[str, int], steps) -> str:
    changes = [
        (row["t_ns"], row["event"] == RequestEvent.RESUME)
        for row in run.rows["lifecycle"]
        if row["request_id"] == request["request_id"]
        and row["event"] in (RequestEvent.RETRACT, RequestEvent.RESUME)
    ]
    before = [resumed for when, resumed in changes if when <= t]
    planned = any(step["plan_ns"] <= t < step["end_ns"] for step in steps)
    if before and not before[-1]:
        return "queue_again"
    if not 0 <= request["admitted_ns"] <= t:
        plans = [step for step in steps if request["arrival_ns"] <= step["plan_ns"] <= t]
        if not plans:
            return "queue_step_in_flight" if planned else "queue_idle"
        reason = AdmissionBlock(plans[-1]["block_reason"])
        return "queue_step_in_flight" if not reason else f"queue_{reason.name.lower()}"
    if _on_its_way(t, run, request, steps, [when for when, resumed in changes if not resumed]):
        return "host"
    if any(step["start_ns"] <= t < step["start_ns"] + step["gpu_ns"] for step in steps):
        return "gpu"
    return "host" if planned else "idle"


def _on_its_way(t: int, run: HandMadeRun, request: dict[str, int], steps, retractions) -> bool:
    """A result that the GPU has, and that the host commits at the next change of the request."""
    tokens = [
        span["token_ns"]
        for span in run.rows["decode_spans"]
        if span["request_id"] == request["request_id"]
    ]
    changes = [request["first_token_ns"], request["finish_ns"], *tokens, *retractions]
    following = min((when for when in changes if when > t), default=None)
    ended = [step for step in steps if step["end_ns"] == following]
    return bool(ended) and ended[-1]["start_ns"] + ended[-1]["gpu_ns"] <= t


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 2**40))
def test_proportions_are_monotone_and_complete(part, of, whole):
    """Dividing an interval anywhere loses nothing, whatever the sizes."""
    from workbench.analysis.timeline import _proportion

    of, part = min(of, whole), min(part, whole)
    values = np.array([0, part, whole], np.int64)
    shares = _proportion(values, np.full(3, of, np.int64), np.full(3, whole, np.int64))
    assert shares[0] == 0
    assert shares[2] == of
    assert 0 <= shares[1] <= min(part, of)
