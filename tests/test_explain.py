"""What `workbench.analysis.explain` says of a run: totals, the worst, advice, and in words."""

from __future__ import annotations

import msgspec
import pytest
from explained_runs import add_finished, ns_by_cause, retracted, three_requests
from run_tables import MS, HandMadeRun, header
from table_builders import Ask, Server, play, poisson

from engine.core.enums import AdmissionBlock, FinishReason, RejectReason
from workbench.analysis.causes import CAUSES, label
from workbench.analysis.explain import (
    MissingDetailError,
    RequestExplanation,
    UnknownRequestError,
    explain_request,
    explain_run,
    render,
)


def test_a_run_s_totals_are_the_sums_over_its_requests():
    """Totals, means and shares of `explain_run` are those of the requests that ended well."""
    run = three_requests()
    explanation = explain_run(run)
    totals = {total.cause: total.total_ns for total in explanation.ttft}
    each = [ns_by_cause(explain_request(run, request).ttft) for request in range(3)]
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
    from workbench.metrics.run_metrics import summarize

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
        add_finished(run, step, 0, 100 * step, 100 * step + 100, 100 * step + 100, output_tokens=1)
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
        add_finished(run, step, 100, begin, begin + 100, begin + 100, output_tokens=1)
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
    add_finished(run, 0, 0, 0, 100, 100, output_tokens=1)
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
    add_finished(run, 3, 100, -1, -1, -1, finish_reason=0, output_tokens=0)
    explanation = explain_request(run, 3)
    assert explanation.ttft_ns is None
    assert sum(ns_by_cause(explanation.ttft).values()) == explanation.e2e_ns == 190
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
