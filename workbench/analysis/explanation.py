"""What an explanation says: plain data, for text, JSON and screens."""

from __future__ import annotations

from dataclasses import dataclass

from engine.core.enums import FinishReason, RejectReason
from workbench.analysis.blame import CauseShare
from workbench.analysis.waiting import WaitReason, WorstStep
from workbench.record.header import Status


@dataclass(frozen=True, slots=True)
class RequestExplanation:
    """Where the time of one request went.

    Attributes:
        request_id, replica, prompt_tokens, cached_tokens, output_tokens, retractions,
        recomputed_tokens, client_wait_ns: as in the `requests` table; the client's own wait comes
            before the arrival and belongs to no latency; 0 under a closed loop.
        finish_reason: NONE if the record ends before the request does.
        reject_reason: why it was rejected, if it was.
        arrival_ns: since the start of the run.
        ttft_ns: None if no token came.
        e2e_ns: up to the end of the request, or of the record.
        ttft: causes that sum to `ttft_ns` (to `e2e_ns` if no token came).
        after_first: causes that sum to `e2e_ns - ttft_ns`.
        rule: how GPU time was divided between prefill and decode.
    """

    request_id: int
    replica: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    retractions: int
    recomputed_tokens: int
    client_wait_ns: int
    finish_reason: FinishReason
    reject_reason: RejectReason
    arrival_ns: int
    ttft_ns: int | None
    e2e_ns: int
    ttft: tuple[CauseShare, ...]
    after_first: tuple[CauseShare, ...]
    rule: str


@dataclass(frozen=True, slots=True)
class CauseTotal:
    """One cause over many requests: total and mean ns, and its share of their latency (0 to 1)."""

    cause: str
    total_ns: int
    mean_ns: float
    share: float


@dataclass(frozen=True, slots=True)
class WorstRequest:
    """A request with a long TTFT, and the cause that cost it most of that."""

    request_id: int
    ttft_ns: int
    cause: str
    cause_ns: int


@dataclass(frozen=True, slots=True)
class RunExplanation:
    """Where the time of all requests of a run went.

    Attributes:
        name, cost_model, status: of the run, from its header.
        num_requests: requests in the measurement (warm-up left out); `waits` is about them.
        num_completed: those that ended well; the causes and the mean latencies are theirs.
        mean_ttft_ns, mean_e2e_ns: None without a completed request.
        ttft, e2e: causes with any time, largest first; they sum to the total latency exactly.
        waits: why requests waited, longest first.
        worst_requests: the longest TTFTs.
        worst_steps: steps whose prefill held up most decodes.
        advice: a sentence for each dominant cause with a remedy.
        notes: what restricts all this.
        rule: how GPU time was divided between prefill and decode.
    """

    name: str
    cost_model: str
    status: Status
    num_requests: int
    num_completed: int
    mean_ttft_ns: float | None
    mean_e2e_ns: float | None
    ttft: tuple[CauseTotal, ...]
    e2e: tuple[CauseTotal, ...]
    waits: tuple[WaitReason, ...]
    worst_requests: tuple[WorstRequest, ...]
    worst_steps: tuple[WorstStep, ...]
    advice: tuple[str, ...]
    notes: tuple[str, ...]
    rule: str


class UnknownRequestError(LookupError):
    """The run has no request with this id."""
