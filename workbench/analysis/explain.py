"""Where latency went, for one request and for a whole run: causes that sum to the total, in ns.

`docs/explain.md` states the rules. The results are plain data; `render` makes text of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from engine.core.enums import FinishReason, RejectReason
from workbench.analysis.advice import Evidence, advise
from workbench.analysis.attribution import Attribution, attribute
from workbench.analysis.blame import blame
from workbench.analysis.causes import CAUSES
from workbench.analysis.explanation import (
    CauseTotal,
    RequestExplanation,
    RunExplanation,
    UnknownRequestError,
    WorstRequest,
)
from workbench.analysis.explanation_text import render
from workbench.analysis.launches import eager_launch_share
from workbench.analysis.source import (
    Bool,
    CachedRun,
    Int64,
    MissingDetailError,
    RunTables,
    int64,
)
from workbench.analysis.waiting import wait_reasons, worst_steps
from workbench.metrics.latency import successful
from workbench.metrics.throughput import in_measurement, select

if TYPE_CHECKING:
    from simulator.cost_model import CostModel

__all__ = [
    "MissingDetailError",
    "RequestExplainer",
    "RequestExplanation",
    "RunExplanation",
    "UnknownRequestError",
    "explain_request",
    "explain_run",
    "render",
]

MOST_NAMED = 5


def explain_request(
    run: RunTables,
    request_id: int,
    cost_models: Mapping[int, CostModel] | None = None,
    most_steps: int = 3,
) -> RequestExplanation:
    """Where the TTFT and the E2E latency of one request went.

    Args:
        run: recorded with detail `items` or more.
        request_id: as in its tables.
        cost_models: replica -> cost model, to tell prefill from decode inside a step. None: those
            that the header names; {}: none, so tokens tell.
        most_steps: steps to name per cause.

    Raises:
        UnknownRequestError: there is no such request, or it was never sent.
        MissingDetailError: the run was recorded with less detail.
    """
    return RequestExplainer(run, cost_models).explain(request_id, most_steps)


class RequestExplainer:
    """Explains one request after the other of a run that does not change any more.

    Args:
        run: recorded with detail `items` or more.
        cost_models: as in `explain_request`.

    Raises:
        MissingDetailError: the run was recorded with less detail.
    """

    def __init__(self, run: RunTables, cost_models: Mapping[int, CostModel] | None = None) -> None:
        self._run = CachedRun(run)
        self._attribution = attribute(self._run, cost_models)

    def explain(self, request_id: int, most_steps: int = 3) -> RequestExplanation:
        """Where the TTFT and the E2E latency of a request went.

        Raises:
            UnknownRequestError: there is no such request, or it was never sent.
        """
        run, attribution = self._run, self._attribution
        requests = attribution.requests
        row = _row_of(requests["request_id"], request_id)
        facts = {name: int(requests[name][row]) for name in requests}
        if facts["arrival_ns"] < 0:
            raise UnknownRequestError(f"request {request_id} was never sent")
        view = attribution.view_of(row)
        life = int(np.flatnonzero(view.lives.rows == row)[0])
        ttft, after = blame(view, life, run.table("items"), most_steps)
        end_ns = int(view.lives.end_ns[life])
        answered = facts["first_token_ns"] >= 0
        return RequestExplanation(
            request_id=request_id,
            replica=facts["replica"],
            prompt_tokens=facts["prompt_tokens"],
            cached_tokens=facts["cached_tokens"],
            output_tokens=facts["output_tokens"],
            retractions=facts["retractions"],
            recomputed_tokens=facts["recomputed_tokens"],
            client_wait_ns=facts["client_wait_ns"] if run.header.load.wants_before_sending() else 0,
            finish_reason=FinishReason(facts["finish_reason"]),
            reject_reason=RejectReason(facts["reject_reason"]),
            arrival_ns=facts["arrival_ns"],
            ttft_ns=facts["first_token_ns"] - facts["arrival_ns"] if answered else None,
            e2e_ns=end_ns - facts["arrival_ns"],
            ttft=tuple(ttft),
            after_first=tuple(after),
            rule=attribution.rule,
        )


def explain_run(
    run: RunTables,
    cost_models: Mapping[int, CostModel] | None = None,
    most: int = MOST_NAMED,
) -> RunExplanation:
    """Where the latency of all requests went, why they waited, and what to do about it.

    Args:
        run: recorded with detail `items` or more.
        cost_models: replica -> cost model, to tell prefill from decode inside a step. None: those
            that the header names; {}: none, so tokens tell.
        most: worst requests and steps to name.

    Raises:
        MissingDetailError: the run was recorded with less detail.
    """
    run = CachedRun(run)
    attribution = attribute(run, cost_models)
    requests, steps = attribution.requests, run.table("steps")
    counted = in_measurement(requests, run.header.measure)
    completed = counted & successful(requests)
    ttft = _totals(attribution.ttft_ns, completed)
    e2e = _totals(attribution.e2e_ns(), completed)
    after = _totals(attribution.after_ns, completed)
    evidence = Evidence(
        header=run.header,
        steps=steps,
        requests=select(requests, completed),
        ttft_ns={total.cause: total.total_ns for total in ttft},
        after_ns={total.cause: total.total_ns for total in after},
        eager_launch_share=eager_launch_share(run, cost_models),
    )
    return RunExplanation(
        name=run.header.name,
        cost_model=run.header.cost_model,
        status=run.header.status,
        num_requests=int(counted.sum()),
        num_completed=int(completed.sum()),
        mean_ttft_ns=_mean(ttft, completed),
        mean_e2e_ns=_mean(e2e, completed),
        ttft=ttft,
        e2e=e2e,
        waits=wait_reasons(attribution, counted),
        worst_requests=_worst_requests(attribution, counted, most),
        worst_steps=worst_steps(attribution, run.table("items"), most),
        advice=advise(evidence),
        notes=_notes(run, counted, completed),
        rule=attribution.rule,
    )


def _row_of(request_ids: Int64, request_id: int) -> int:
    rows = np.flatnonzero(request_ids == request_id)
    if len(rows):
        return int(rows[0])
    if not len(request_ids):
        raise UnknownRequestError("the run has no requests")
    known = f"{int(request_ids.min())} to {int(request_ids.max())}"
    raise UnknownRequestError(f"the run has no request {request_id}; its requests are {known}")


def _totals(causes: Mapping[str, Int64], kept: Bool) -> tuple[CauseTotal, ...]:
    number = int(kept.sum())
    sums = {cause: int(ns[kept].sum()) for cause, ns in causes.items()}
    whole = sum(sums.values())
    return tuple(
        CauseTotal(cause, ns, ns / number, ns / whole)
        for cause, ns in sorted(sums.items(), key=lambda entry: -entry[1])
        if ns
    )


def _mean(totals: tuple[CauseTotal, ...], kept: Bool) -> float | None:
    number = int(kept.sum())
    return sum(total.total_ns for total in totals) / number if number else None


def _worst_requests(attribution: Attribution, counted: Bool, most: int) -> tuple[WorstRequest, ...]:
    requests = attribution.requests
    answered = np.flatnonzero(counted & (requests["first_token_ns"] >= 0))
    ttft = int64(requests, "first_token_ns")[answered] - int64(requests, "arrival_ns")[answered]
    worst = []
    for i in np.argsort(-ttft, kind="stable")[:most].tolist():
        row = answered[i]
        cause = max(CAUSES, key=lambda name: int(attribution.ttft_ns[name][row]))
        worst.append(
            WorstRequest(
                request_id=int(requests["request_id"][row]),
                ttft_ns=int(ttft[i]),
                cause=cause,
                cause_ns=int(attribution.ttft_ns[cause][row]),
            )
        )
    return tuple(worst)


def _notes(run: RunTables, counted: Bool, completed: Bool) -> tuple[str, ...]:
    notes = [f"step times: {note}" for note in run.header.cost_model_notes]
    if run.header.status != "complete":
        notes.append(f"{run.header.how_it_ended()}; requests without an end are left out")
    left_out = int(counted.sum() - completed.sum())
    if left_out:
        notes.append(f"{left_out:,} requests did not end well; only why they waited is counted")
    warm_up = int((~counted).sum())
    if warm_up:
        notes.append(f"{warm_up:,} requests lie outside the measurement (warm-up, window, unsent)")
    return tuple(notes)
