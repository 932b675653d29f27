"""Runs made by hand whose latency is explained."""

from __future__ import annotations

from run_tables import HandMadeRun

from engine.core.enums import AdmissionBlock, RequestEvent


def ns_by_cause(shares) -> dict[str, int]:
    return {share.cause: share.ns for share in shares}


def add_finished(
    run: HandMadeRun, request_id: int, arrival, admitted, first, finish, **row
) -> None:
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
    add_finished(run, 0, 0, 0, 120, 290)
    add_finished(run, 1, 50, 120, 290, 290, output_tokens=1)
    add_finished(run, 2, 60, 200, 290, 290, output_tokens=1, prompt_tokens=5)
    return run


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
    add_finished(run, 0, 0, 0, 300, 600, retractions=2)
    return run
