"""Where the TTFT of a request went, in parts that sum to 100 %, and who is to blame for each."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from workbench.analysis.blame import BlamedStep, CauseShare
from workbench.analysis.causes import (
    DECODE_OTHERS,
    DECODE_OWN,
    HOST,
    IDLE,
    PIPELINE,
    PREFILL_OTHERS,
    PREFILL_OWN,
    QUEUE_CAUSES,
    RECOMPUTE,
    label,
)
from workbench.analysis.explain import RequestExplanation
from workbench.tui.store import RunStore

Float64 = NDArray[np.float64]

MOST_STEPS: Final = 1000  # that a cause names, so that sums over them are nearly whole
_NAMED: Final = 3
COLOURS: Final = {
    **dict.fromkeys(QUEUE_CAUSES, "data-queue"),
    PIPELINE: "data-transfer",
    PREFILL_OWN: "data-prefill",
    PREFILL_OTHERS: "data-step",
    DECODE_OTHERS: "data-decode",
    DECODE_OWN: "data-good",
    RECOMPUTE: "data-preempt",
    HOST: "data-other",
    IDLE: "data-same",
}
GLYPHS: Final = {
    **dict.fromkeys(QUEUE_CAUSES, "░"),
    PIPELINE: "·",
    PREFILL_OWN: "▒",
    PREFILL_OTHERS: "▓",
    DECODE_OTHERS: "█",
    DECODE_OWN: "█",
    RECOMPUTE: "x",
    HOST: "-",
    IDLE: " ",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A cause and its share of the TTFT.

    Attributes:
        cause: of `workbench.analysis.causes`.
        label: in words.
        ns: what it cost.
        tenths: of a percent; over all parts they sum to 1,000.
        colour, glyph: how to draw it.
        blame: who or what it is due to, in words.
        replica, step: the step that cost most of it; step -1: the record shows none.
    """

    cause: str
    label: str
    ns: int
    tenths: int
    colour: str
    glyph: str
    blame: str
    replica: int
    step: int

    @property
    def percent(self) -> float:
        """Percent of the TTFT, to one decimal."""
        return self.tenths / 10


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A request's TTFT in parts, largest first; the time until its end if no token came."""

    whole_ns: int
    answered: bool
    parts: tuple[Part, ...]


def breakdown(explanation: RequestExplanation) -> Breakdown:
    """The parts of a request's TTFT."""
    shares = sorted(explanation.ttft, key=lambda share: -share.ns)
    whole = sum(share.ns for share in shares)
    tenths = tenths_of_percents([share.ns for share in shares])
    parts = tuple(_part(share, part) for share, part in zip(shares, tenths, strict=True))
    return Breakdown(whole, explanation.ttft_ns is not None, parts)


def _part(share: CauseShare, tenths: int) -> Part:
    worst = share.steps[0] if share.steps else None
    return Part(
        cause=share.cause,
        label=label(share.cause),
        ns=share.ns,
        tenths=tenths,
        colour=COLOURS[share.cause],
        glyph=GLYPHS[share.cause],
        blame=_blame(share),
        replica=-1 if worst is None else worst.replica,
        step=-1 if worst is None else worst.step,
    )


def tenths_of_percents(amounts: list[int]) -> list[int]:
    """Tenths of percents of amounts, which sum to 1,000: the largest remainders are rounded up."""
    whole = sum(amounts)
    if whole <= 0:
        return [0] * len(amounts)
    exact = [1000 * amount / whole for amount in amounts]
    floors = [int(value) for value in exact]
    short = 1000 - sum(floors)
    order = sorted(range(len(exact)), key=lambda i: floors[i] - exact[i])
    for i in order[:short]:
        floors[i] += 1
    return floors


def _blame(share: CauseShare) -> str:
    """The requests to blame, each with what it cost, or else the steps."""
    if share.cause == PREFILL_OTHERS:
        return _culprits(share.steps)
    if not share.steps:
        return ""
    steps = [step for step in share.steps if step.step >= 0]
    if not steps:
        return "no step recorded"
    worst = steps[0]
    others = f", {worst.decode_requests:,} decodes" if worst.decode_requests else ""
    beside = _prefills(worst)
    where = f"step {worst.step:,}{beside}{others}"
    if len(steps) == 1:
        return where
    return f"{len(steps):,} steps, most in {where}"


def _prefills(step: BlamedStep) -> str:
    if not step.prefills:
        return ""
    named = ", ".join(f"r{request} {tokens:,} tok" for request, tokens in step.prefills[:_NAMED])
    more = len(step.prefills) - _NAMED
    return f" with prefill of {named}" + (f" and {more} more" if more > 0 else "")


def _culprits(steps: tuple[BlamedStep, ...]) -> str:
    """`r453 +41.2 ms (1,204 tok, step 2,183)`: a step's time goes to its prefills by tokens."""
    cost: dict[int, float] = defaultdict(float)
    tokens: dict[int, int] = defaultdict(int)
    where: dict[int, list[int]] = defaultdict(list)
    for step in steps:
        total = sum(count for _, count in step.prefills)
        for request, count in step.prefills:
            cost[request] += step.ns * count / total
            tokens[request] += count
            where[request].append(step.step)
    worst = sorted(cost, key=lambda request: -cost[request])
    named = [
        f"r{request} +{cost[request] / 1e6:,.1f} ms ({tokens[request]:,} tok, "
        f"{_steps(where[request])})"
        for request in worst[:_NAMED]
    ]
    more = len(worst) - _NAMED
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _steps(steps: list[int]) -> str:
    first, last = min(steps), max(steps)
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"


def token_gaps_ms(store: RunStore, request_id: int) -> Float64:
    """The gaps between successive tokens of a request, in ms, as far as they are recorded."""
    times: list[NDArray[np.int64]] = []
    for replica in store.replicas:
        spans = {name: replica.spans[name] for name in ("request_id", "token_ns", "first_iteration",
                                                         "committed")}  # fmt: skip
        mine = np.flatnonzero(spans["request_id"] == request_id)
        if not len(mine):
            continue
        iteration = replica.steps.column("decode_iteration")
        decodes = np.flatnonzero(iteration >= 0)
        ends = replica.steps.column("end_ns")[decodes]
        for row in mine.tolist():
            at = np.searchsorted(iteration[decodes], spans["first_iteration"][row])
            tokens = ends[at : at + int(spans["committed"][row])]
            times.append(np.concatenate(([spans["token_ns"][row]], tokens)))
    joined = np.sort(np.concatenate(times)) if times else np.empty(0, np.int64)
    return np.diff(joined[joined >= 0]) / 1e6
