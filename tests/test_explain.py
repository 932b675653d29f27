"""Laws of `workbench.explain`: where the latency of requests went."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_tables import MS, HandMadeRun, header, random_run
from table_builders import Ask, Server, asks, play, poisson, servers

from engine.core.enums import AdmissionBlock, FinishReason, RejectReason, RequestEvent
from simulator.cost_model import StepCosts, StepFeatures
from workbench.analysis.attribution import attribute, times_ns
from workbench.analysis.causes import CAUSES, label
from workbench.explain import (
    MissingDetailError,
    RequestExplanation,
    UnknownRequestError,
    explain_request,
    explain_run,
    render,
)

GPU_CAUSES = (
    "pipeline",
    "prefill_own",
    "prefill_others",
    "recompute",
    "decode_own",
    "decode_others",
)


def _ns(shares) -> dict[str, int]:
    return {share.cause: share.ns for share in shares}


def _finished(run: HandMadeRun, request_id: int, arrival, admitted, first, finish, **row) -> None:
    times = {"admitted_ns": admitted, "first_token_ns": first, "finish_ns": finish}
    defaults = {"output_tokens": 3, "prompt_tokens": 10, "max_tokens": 3, "finish_reason": 2}
    run.add("requests", request_id=request_id, arrival_ns=arrival, **(defaults | times | row))


def three_requests() -> HandMadeRun:
    """Three steps: r0 alone; r0 decodes beside half of r1; r0 decodes beside r1's rest and r2."""
    run = HandMadeRun()
    limit = int(AdmissionBlock.RUNNING_LIMIT)
    run.add_step(0, plan=0, start=10, gpu=100, end=120, prefill_tokens=10)
    run.add_step(
        1, plan=120, start=130, gpu=60, end=200, prefill_tokens=5, decode_requests=1,
        decode_iteration=0, waiting=1, block_reason=limit,
    )  # fmt: skip
    run.add_step(
        2, plan=200, start=205, gpu=77, end=290, prefill_tokens=10, decode_requests=1,
        decode_iteration=1,
    )  # fmt: skip
    run.add_item(0, 0, 10)
    run.add_item(1, 1, 5)
    run.add_item(2, 1, 5, context=5)
    run.add_item(2, 2, 5)
    run.add_span(0, token=120, first=0, scheduled=2)
    _finished(run, 0, 0, 0, 120, 290)
    _finished(run, 1, 50, 120, 290, 290, output_tokens=1)
    _finished(run, 2, 60, 200, 290, 290, output_tokens=1, prompt_tokens=5)
    return run


def test_prefill_is_divided_by_tokens():
    """A request pays for its own tokens; batched prefills and decodes of others are theirs."""
    causes = _ns(explain_request(three_requests(), 1).ttft)
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
    causes = _ns(explain_request(three_requests(), 2).ttft)
    assert causes["queue_step_in_flight"] == 60
    assert causes["queue_running_limit"] == 80
    assert sum(causes.values()) == 230


def test_a_decoding_request_pays_for_prefills_beside_it():
    """After its first token: its decodes, the prefill part of those steps, and host time."""
    explanation = explain_request(three_requests(), 0)
    assert _ns(explanation.ttft) == {"prefill_own": 100, "host": 20}
    assert _ns(explanation.after_first) == {
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
    _finished(run, 0, 0, 0, 105, 105, output_tokens=1)
    _finished(run, 1, 10, 20, 155, 155, output_tokens=1)
    assert _ns(explain_request(run, 1).ttft) == {
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
    assert _ns(explain_request(run, 0).after_first)["prefill_others"] == 50 + 77


def retracted() -> HandMadeRun:
    """r0 prefills 6 of 10 tokens, is sent back, resumes at 4, decodes, is sent back, resumes."""
    run = HandMadeRun()
    plans = [(0, 6, 0), (100, 0, 0), (200, 6, 0), (300, 0, 1), (400, 0, 0), (500, 11, 0)]
    for step, (plan, prefill, decode) in enumerate(plans):
        run.add_step(
            step, plan, plan, 100, plan + 100, prefill_tokens=prefill, decode_requests=decode,
            decode_iteration=0 if decode else -1, block_reason=int(AdmissionBlock.KV_PAGES),
        )  # fmt: skip
    run.add_item(0, 0, 6)
    run.add_item(2, 0, 6, context=4)
    run.add_item(5, 0, 11)
    run.add_span(0, token=300, first=0, scheduled=1)
    for t, event in [
        (100, RequestEvent.RETRACT),
        (200, RequestEvent.RESUME),
        (400, RequestEvent.RETRACT),
        (500, RequestEvent.RESUME),
    ]:
        run.add("lifecycle", t_ns=t, request_id=0, event=int(event))
    _finished(run, 0, 0, 0, 300, 600, retractions=2)
    return run


def test_what_had_been_computed_before_a_retraction_is_recompute():
    """Tokens below the furthest computed position count as computed again, the rest as own."""
    causes = _ns(explain_request(retracted(), 0).ttft)
    # Resumed at 4 of 10 with 6 computed before: 2 of the 6 tokens are computed again.
    assert causes == {"prefill_own": 100 + 67, "recompute": 33, "queue_again": 100}


def test_after_the_first_token_every_prefill_is_recompute():
    """A request that has given tokens only prefills what it lost."""
    causes = _ns(explain_request(retracted(), 0).after_first)
    assert causes == {"decode_own": 100, "queue_again": 100, "recompute": 100}


class _LinearModel:
    """GPU time 1000 + 10 per prefill token + 5 per decode, or 700 + 5 per row on a CUDA Graph."""

    name = "linear"

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
    _finished(run, 0, 0, 0, 1000, 1000 + gpu)
    return run


def test_the_cost_model_tells_what_decodes_alone_would_cost():
    """With a cost model the decode part is its price of the step without prefill."""
    explanation = explain_request(_mixed_step(gpu=1250), 0, cost_models={0: _LinearModel()})
    assert _ns(explanation.after_first) == {"decode_own": 1050, "prefill_others": 200}
    assert "linear" in explanation.rule


def test_measured_steps_are_divided_in_the_model_s_proportion():
    """A recorded duration that differs from the model's is divided as the model divides its own."""
    explanation = explain_request(_mixed_step(gpu=2500), 0, cost_models={0: _LinearModel()})
    assert _ns(explanation.after_first) == {"decode_own": 2100, "prefill_others": 400}


def test_decodes_alone_would_have_run_on_a_cuda_graph():
    """The decode part of an eager mixed step is priced with the graph that fits the decodes."""
    pools = [{"replicas": 1, "cuda_graph_batch_sizes": [8, 16]}]
    run = _mixed_step(gpu=1250, scenario={"deployment": {"pools": pools}})
    explanation = explain_request(run, 0, cost_models={0: _LinearModel()})
    assert _ns(explanation.after_first) == {"decode_own": 780, "prefill_others": 470}


def test_without_a_cost_model_tokens_tell_and_the_text_says_so():
    """The rule that divided GPU time stands in every explanation."""
    explanation = explain_request(_mixed_step(gpu=1200), 0, cost_models={})
    assert _ns(explanation.after_first) == {"decode_own": 400, "prefill_others": 800}
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
            assert _ns(shares) == {c: int(ns[row]) for c, ns in whole.items() if ns[row]}
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


def test_a_run_s_totals_are_the_sums_over_its_requests():
    """Totals, means and shares of `explain_run` are those of the requests that ended well."""
    run = three_requests()
    explanation = explain_run(run)
    totals = {total.cause: total.total_ns for total in explanation.ttft}
    each = [_ns(explain_request(run, request).ttft) for request in range(3)]
    assert totals == {
        cause: sum(causes.get(cause, 0) for causes in each)
        for cause in CAUSES
        if any(cause in causes for causes in each)
    }
    assert explanation.mean_ttft_ns == (120 + 240 + 230) / 3
    assert explanation.mean_e2e_ns == (290 + 240 + 230) / 3
    assert sum(total.share for total in explanation.e2e) == pytest.approx(1)


def test_why_requests_waited_is_counted_in_request_seconds():
    """Each reason has the time that requests spent under it, and how many did."""
    waits = {wait.cause: wait for wait in explain_run(three_requests()).waits}
    assert waits["queue_step_in_flight"].request_seconds == (70 + 60) / 1e9
    assert waits["queue_step_in_flight"].requests == 2
    assert waits["queue_running_limit"].request_seconds == 80 / 1e9


def test_the_worst_requests_and_steps_come_first():
    """Requests by TTFT; steps by prefill time times the decodes it held up."""
    explanation = explain_run(three_requests())
    assert [worst.request_id for worst in explanation.worst_requests] == [1, 2, 0]
    assert explanation.worst_requests[1].cause == "queue_running_limit"
    assert [(s.step, s.prefill_ns, s.delayed_requests) for s in explanation.worst_steps] == [
        (2, 70, 1),
        (1, 50, 1),
    ]
    assert explanation.worst_steps[0].prefills == ((1, 5), (2, 5))


def test_requests_outside_the_measurement_are_left_out():
    """Means are those of the summary: warm-up requests do not count."""
    played = play(poisson(40, 400), Server(slots=2))
    run = HandMadeRun(played.header())
    run.table = played.tables.__getitem__
    measure = msgspec.structs.replace(run.header.measure, warmup_requests=15)
    run.header = msgspec.structs.replace(run.header, measure=measure)
    from workbench.metrics import summarize

    summary = summarize(played.tables, run.header)
    explanation = explain_run(run)
    assert explanation.num_completed == 25
    assert explanation.mean_ttft_ns == pytest.approx(summary["mean_ttft_ms"] * MS)
    assert explanation.mean_e2e_ns == pytest.approx(summary["mean_e2el_ms"] * MS)


def _queueing_run(free_pages: int) -> HandMadeRun:
    run = HandMadeRun()
    limit = int(AdmissionBlock.RUNNING_LIMIT)
    for step in range(10):
        run.add_step(
            step, 100 * step, 100 * step, 100, 100 * step + 100, prefill_tokens=10,
            block_reason=limit, waiting=1, free_pages=free_pages,
        )  # fmt: skip
        run.add_item(step, step, 10)
        _finished(run, step, 0, 100 * step, 100 * step + 100, 100 * step + 100, output_tokens=1)
    return run


def test_advice_names_the_limit_that_was_reached_and_its_value():
    """Queueing for a free slot, with free pages, is a reason to raise max_running_requests."""
    (advice,) = explain_run(_queueing_run(free_pages=40)).advice
    assert advice.startswith("82% of the TTFT is queueing because max_running_requests=8 was")
    assert "raise it (40% of the KV pages were free" in advice


def test_advice_does_not_promise_what_memory_forbids():
    """With the pages used up, a higher limit is not advised."""
    (advice,) = explain_run(_queueing_run(free_pages=2)).advice
    assert "only 2% of the KV pages free: add a replica" in advice
    assert "raise it" not in advice


def _spent_budget_run(decode_ns: int) -> HandMadeRun:
    """Ten requests queue for steps of 100 ns whose budget is spent, after one decode-only step."""
    run = HandMadeRun()
    run.add_step(0, 0, 0, decode_ns, decode_ns, decode_requests=1, decode_iteration=0)
    for step in range(1, 11):
        begin = 100 * step
        run.add_step(
            step, begin, begin, 100, begin + 100, prefill_tokens=10,
            block_reason=int(AdmissionBlock.TOKEN_BUDGET), waiting=1,
        )  # fmt: skip
        run.add_item(step, step, 10)
        _finished(run, step, 100, begin, begin + 100, begin + 100, output_tokens=1)
    return run


def test_a_larger_budget_is_advised_only_where_it_would_raise_throughput():
    """Steps made of prefill take longer in proportion to the budget: it is not what limits."""
    (bound,) = [text for text in explain_run(_spent_budget_run(10)).advice if "queueing" in text]
    assert "add a replica or a faster GPU" in bound
    assert "raise it" not in bound
    (free,) = [text for text in explain_run(_spent_budget_run(60)).advice if "queueing" in text]
    assert "raise it or add a replica" in free


def test_no_advice_without_a_dominant_cause_that_has_a_remedy():
    """A lone short request has nothing to be told but what its own prefill costs."""
    run = HandMadeRun()
    run.add_step(0, 0, 80, 20, 100, prefill_tokens=10)
    run.add_item(0, 0, 10)
    _finished(run, 0, 0, 0, 100, 100, output_tokens=1)
    assert [text for text in explain_run(run).advice if "queueing" in text] == []


def test_retractions_that_matter_are_advised_against():
    """The price of retractions is told once it is a noticeable share of E2E."""
    scheduler = {"admission": "estimate", "schedule_conservativeness": 0.3}
    run = retracted()
    run.header = header(scenario={"scheduler": scheduler})
    advice = " ".join(explain_run(run).advice)
    assert "2 retractions" in advice
    assert "schedule_conservativeness above 0.3" in advice


@pytest.mark.parametrize("detail", ["none", "steps"])
def test_too_little_detail_says_which_would_do(detail):
    """A record without items cannot be explained; the error names the option."""
    run = three_requests()
    run.header = header(detail=detail)
    with pytest.raises(MissingDetailError, match="--detail items or higher"):
        explain_run(run)


def test_a_request_that_does_not_exist_is_an_error():
    """The error says which requests there are."""
    with pytest.raises(UnknownRequestError, match="no request 7; its requests are 0 to 2"):
        explain_request(three_requests(), 7)


def test_an_empty_run_is_explained_as_such():
    """No request, no step: no figures, and text all the same."""
    explanation = explain_run(HandMadeRun())
    assert explanation.mean_ttft_ns is None
    assert "no request completed" in render(explanation)


def test_an_unfinished_request_is_explained_up_to_the_end_of_the_record():
    """Its causes sum to the time that the record covers."""
    run = three_requests()
    run.header = header(status="interrupted", status_reason="stopped by hand")
    _finished(run, 3, 100, -1, -1, -1, finish_reason=0, output_tokens=0)
    explanation = explain_request(run, 3)
    assert explanation.ttft_ns is None
    assert sum(_ns(explanation.ttft).values()) == explanation.e2e_ns == 190
    assert "unfinished when the record ends" in render(explanation)
    assert "stopped by hand" in render(explain_run(run))


def test_a_rejected_request_says_why():
    """A request that never ran has no causes and names the reason."""
    run = three_requests()
    run.add(
        "requests", request_id=3, replica=-1, arrival_ns=30, finish_ns=30, admitted_ns=-1,
        finish_reason=int(FinishReason.REJECTED),
        reject_reason=int(RejectReason.EXCEEDS_KV_POOL),
    )  # fmt: skip
    explanation = explain_request(run, 3)
    assert explanation.ttft == () == explanation.after_first
    assert "rejected: exceeds kv pool" in render(explanation)


def test_text_sums_and_names_causes_in_words():
    """The rendered request shows its totals and the label of every cause."""
    explanation = explain_request(three_requests(), 1)
    text = render(explanation)
    assert isinstance(explanation, RequestExplanation)
    for share in explanation.ttft:
        assert label(share.cause) in text
    assert "TTFT 0.000 ms" in text


def test_every_reason_of_the_scheduler_has_words():
    """A cause that the enum gains must get a label."""
    from workbench.analysis.causes import LABELS

    assert set(CAUSES) == set(LABELS)


def test_client_side_waiting_stands_apart():
    """Time that the client's own cap held a request back is shown, and belongs to no latency."""
    played = play([Ask(MS, client_wait_ns=5 * MS)])
    run = HandMadeRun(played.header())
    run.table = played.tables.__getitem__
    explanation = explain_request(run, 0)
    assert explanation.client_wait_ns == 5 * MS
    whole = sum(share.ns for share in (*explanation.ttft, *explanation.after_first))
    assert whole == explanation.e2e_ns
    assert "held it back for 5.000 ms" in render(explanation)


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
