"""An explained run as lines, those about a step or a request leading to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from workbench.analysis.causes import label
from workbench.analysis.explanation import CauseTotal, RunExplanation, WorstRequest
from workbench.analysis.waiting import WaitReason, WorstStep
from workbench.record.header import STATUS_TEXTS
from workbench.tui.goto_target import RequestTarget, StepTarget
from workbench.tui.requests.breakdown import COLOURS
from workbench.tui.text_pane import TextLine

_NAMED = 3


def explanation_lines(found: RunExplanation) -> list[TextLine]:
    """All that is known of a run, the general first."""
    return [
        TextLine(
            f"{found.num_completed:,} of {found.num_requests:,} requests ended well; the run is "
            f"{STATUS_TEXTS[found.status]}; step times: {found.cost_model}"
        ),
        *(TextLine(f"note: {note}", "data-warning") for note in found.notes),
        *_advice(found.advice),
        *_causes("Mean TTFT", found.mean_ttft_ns, found.ttft),
        *_causes("Mean E2E latency", found.mean_e2e_ns, found.e2e),
        *_waits(found.waits),
        *_worst_requests(found.worst_requests),
        *_worst_steps(found.worst_steps),
        TextLine(""),
        TextLine(f"GPU time of mixed steps was divided {found.rule}.", "data-axis"),
    ]


def _heading(text: str) -> Iterator[TextLine]:
    yield TextLine("")
    yield TextLine(text, bold=True)


def _advice(sentences: Iterable[str]) -> Iterator[TextLine]:
    sentences = list(sentences)
    if sentences:
        yield from _heading("What would help")
        yield from (TextLine(f"  {sentence}", "data-good") for sentence in sentences)


def _causes(what: str, mean_ns: float | None, totals: tuple[CauseTotal, ...]) -> Iterator[TextLine]:
    if mean_ns is None:
        yield from _heading(f"{what}: no request completed")
        return
    yield from _heading(f"{what} {mean_ns / 1e6:,.1f} ms, where it goes")
    for total in totals:
        text = f"  {total.mean_ns / 1e6:>9,.1f} ms {total.share:>4.0%}  {label(total.cause)}"
        yield TextLine(text, COLOURS.get(total.cause))


def _waits(waits: tuple[WaitReason, ...]) -> Iterator[TextLine]:
    if not waits:
        yield from _heading("No request waited in a queue")
        return
    yield from _heading("Why requests waited")
    for wait in waits:
        yield TextLine(
            f"  {wait.request_seconds:>9,.1f} request-s  {label(wait.cause)}, "
            f"{wait.requests:,} requests"
        )


def _worst_requests(worst: tuple[WorstRequest, ...]) -> Iterator[TextLine]:
    if worst:
        yield from _heading("Longest TTFTs (enter goes to the request)")
    for request in worst:
        yield TextLine(
            f"  r{request.request_id:<9} {request.ttft_ns / 1e6:>10,.1f} ms, of which "
            f"{request.cause_ns / 1e6:,.1f} ms {label(request.cause)}",
            target=RequestTarget(request.request_id),
        )


def _worst_steps(steps: tuple[WorstStep, ...]) -> Iterator[TextLine]:
    if steps:
        yield from _heading("Prefills that held up most decodes (enter goes to the step)")
    for step in steps:
        named = ", ".join(
            f"r{request} {tokens:,} tok" for request, tokens in step.prefills[:_NAMED]
        )
        yield TextLine(
            f"  step {step.step:<9,} {step.delayed_requests:>4,} decodes for "
            f"{step.prefill_ns / 1e6:,.1f} ms: {named}",
            target=StepTarget(step.step, step.replica),
        )
