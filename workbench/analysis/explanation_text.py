"""Explanations as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import singledispatch

from engine.core.enums import FinishReason, RejectReason
from workbench.analysis.blame import BlamedStep, CauseShare
from workbench.analysis.causes import label
from workbench.analysis.explanation import CauseTotal, RequestExplanation, RunExplanation
from workbench.analysis.waiting import WaitReason, WorstStep
from workbench.record.header import STATUS_TEXTS

_NS_PER_MS = 1e6
_NAMED_OTHERS = 3


@singledispatch
def render(explanation: RequestExplanation | RunExplanation) -> str:
    """The explanation as lines of text."""
    raise TypeError(f"nothing to render in {type(explanation).__name__}")


@render.register
def _(explanation: RequestExplanation) -> str:
    lines = [_heading(explanation)]
    if explanation.client_wait_ns:
        wait = _ms(explanation.client_wait_ns)
        lines.append(f"  before that, the client's own concurrency cap held it back for {wait}")
    if explanation.ttft_ns is None:
        lines += ["", f"No token came; until the end {_ms(explanation.e2e_ns)}"]
        lines += _causes(explanation.ttft, explanation.e2e_ns)
    else:
        after_ns = explanation.e2e_ns - explanation.ttft_ns
        lines += ["", f"TTFT {_ms(explanation.ttft_ns)}"]
        lines += _causes(explanation.ttft, explanation.ttft_ns)
        if after_ns:
            lines += ["", f"After the first token {_ms(after_ns)}"]
            lines += _causes(explanation.after_first, after_ns)
        lines += ["", f"E2E {_ms(explanation.e2e_ns)}"]
    return "\n".join([*lines, "", _rule(explanation.rule)]) + "\n"


@render.register
def _(explanation: RunExplanation) -> str:
    status = STATUS_TEXTS[explanation.status]
    about = f"{explanation.name} ({status}; step times: {explanation.cost_model})"
    ended = f"{explanation.num_completed:,} of {explanation.num_requests:,} requests ended well"
    lines = [
        f"{about}: {ended}",
        *(f"  note: {note}" for note in explanation.notes),
        *_mean_causes("TTFT", explanation.mean_ttft_ns, explanation.ttft),
        *_mean_causes("E2E latency", explanation.mean_e2e_ns, explanation.e2e),
        *_waits(explanation.waits, explanation.num_requests),
        *_worst_requests(explanation),
        *_worst_steps(explanation.worst_steps),
    ]
    if explanation.advice:
        lines += ["", "What would help", *(f"  {sentence}" for sentence in explanation.advice)]
    return "\n".join([*lines, "", _rule(explanation.rule)]) + "\n"


def _heading(explanation: RequestExplanation) -> str:
    where = f"on replica {explanation.replica}" if explanation.replica >= 0 else "on no replica"
    if explanation.finish_reason == FinishReason.NONE:
        end = "unfinished when the record ends"
    elif explanation.reject_reason != RejectReason.NONE:
        end = f"rejected: {_words(explanation.reject_reason.name)}"
    else:
        end = f"finished: {_words(explanation.finish_reason.name)}"
    text = (
        f"request {explanation.request_id} {where}, sent at {explanation.arrival_ns / 1e9:,.3f} s: "
        f"{explanation.prompt_tokens:,} prompt tokens ({explanation.cached_tokens:,} from the "
        f"prefix cache), {explanation.output_tokens:,} output tokens, {end}"
    )
    if explanation.retractions:
        text += (
            f"; retracted {explanation.retractions}x, "
            f"{explanation.recomputed_tokens:,} tokens computed again"
        )
    return text


def _causes(shares: Iterable[CauseShare], total_ns: int) -> list[str]:
    lines = []
    for share in sorted(shares, key=lambda share: -share.ns):
        lines.append(f"  {label(share.cause):<52} {_ms(share.ns):>14}  {share.ns / total_ns:6.1%}")
        lines += [f"      {_step(step)}" for step in share.steps]
    return lines


def _step(step: BlamedStep) -> str:
    if step.step < 0:
        return f"{_ms(step.ns)} with no step recorded"
    return (
        f"{_ms(step.ns)} by step {step.step:,} of replica {step.replica} at "
        f"{step.at_ns / 1e9:,.3f} s ({_batch(step.decode_requests, step.prefills)})"
    )


def _batch(decode_requests: int, prefills: Sequence[tuple[int, int]]) -> str:
    parts = [f"r{request_id} {tokens:,} tok" for request_id, tokens in prefills[:_NAMED_OTHERS]]
    if len(prefills) > _NAMED_OTHERS:
        parts.append(f"{len(prefills) - _NAMED_OTHERS} more")
    others = f"prefill of {', '.join(parts)}" if parts else "no other prefill"
    return f"{others}; {decode_requests:,} other decodes"


def _mean_causes(what: str, mean_ns: float | None, totals: tuple[CauseTotal, ...]) -> list[str]:
    if mean_ns is None:
        return ["", f"{what}: no request completed"]
    rows = [
        f"  {label(total.cause):<52} {_ms(total.mean_ns):>14}  {total.share:6.1%}"
        for total in totals
    ]
    return ["", f"Mean {what} {_ms(mean_ns)}, where it goes", *rows]


def _waits(waits: tuple[WaitReason, ...], num_requests: int) -> list[str]:
    if not waits:
        return ["", "No request waited in a queue"]
    rows = [
        f"  {label(wait.cause):<52} {wait.request_seconds:>12,.3f} s  {wait.requests:,} requests"
        for wait in waits
    ]
    return ["", f"Why requests waited (request-seconds over {num_requests:,} requests)", *rows]


def _worst_requests(explanation: RunExplanation) -> list[str]:
    rows = [
        f"  r{worst.request_id:<10} TTFT {_ms(worst.ttft_ns):>14}, of which "
        f"{_ms(worst.cause_ns)} {label(worst.cause)}"
        for worst in explanation.worst_requests
    ]
    return ["", "Longest TTFTs", *rows] if rows else []


def _worst_steps(steps: tuple[WorstStep, ...]) -> list[str]:
    rows = [
        f"  step {step.step:,} of replica {step.replica} at {step.start_ns / 1e9:,.3f} s held up "
        f"{step.delayed_requests:,} decodes for {_ms(step.prefill_ns)}: "
        + ", ".join(
            f"r{request} {tokens:,} tok" for request, tokens in step.prefills[:_NAMED_OTHERS]
        )
        for step in steps
    ]
    return ["", "Prefills that held up most decodes", *rows] if rows else []


def _rule(rule: str) -> str:
    return f"GPU time of mixed steps was divided {rule}."


def _words(name: str) -> str:
    return name.lower().replace("_", " ")


def _ms(ns: float) -> str:
    return f"{ns / _NS_PER_MS:,.3f} ms"
