"""Does the offered load exceed capacity? If so, latencies measure the length of the run.

Open-loop arrivals do not slow down when a system falls behind, so that under overload queues grow
for as long as requests arrive, and a TTFT of such a run says when it was stopped. The tests below
ask whether the backlog grew more over the arrivals than chance explains. Over n arrivals at
utilisation 1 the backlog of a queue wanders by sqrt(n (ca^2 + cs^2)) requests, with ca and cs the
coefficients of variation of inter-arrival times and of work per request (the heavy-traffic limit;
Kingman 1962, Whitt, Stochastic-Process Limits, 2002). Growth beyond twice that is overload; a
stable system stays far below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from engine.core.enums import FinishReason
from engine.core.events import Columns
from workbench.metrics.latency import NS_PER_S

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

LoadState = Literal["overloaded", "stable", "offline", "closed_loop", "too_short"]

_SIGMAS: Final = 2.0
_MIN_REQUESTS: Final = 20
_MAX_UNFINISHED: Final = 0.25  # of all requests at the last arrival, where a verdict is given
_NEVER: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class LoadVerdict:
    """What the load was to the deployment.

    Attributes:
        state: "overloaded": the backlog grew over the arrivals; "stable": it did not; "offline":
            all requests came at once; "closed_loop": clients wait for answers, so that load
            follows capacity; "too_short": too few arrivals to tell.
        sentence: the same for people, with figures.
    """

    state: LoadState
    sentence: str

    @property
    def overloaded(self) -> bool:
        return self.state == "overloaded"


@dataclass(frozen=True, slots=True)
class _Arrivals:
    """Requests in the order in which clients wanted to send them; times in ns, int64[n].

    Attributes:
        offered: when the client had it, before its own concurrency cap held it back.
        admitted: when it left the queue (for a batch, or by an abort), _NEVER if it did not.
        finished: when it ended, _NEVER if it did not.
        tokens: prompt and output tokens.
        cut_ns: the end of the run.
    """

    offered: Int64
    admitted: Int64
    finished: Int64
    tokens: Int64
    cut_ns: int

    def __len__(self) -> int:
        return len(self.offered)

    @property
    def span_s(self) -> float:
        return float(self.offered[-1] - self.offered[0]) / NS_PER_S


def judge_load(requests: Columns, load_kind: str, run_end_ns: int) -> LoadVerdict:
    """Judge from the `requests` table of the whole run (warm-up included)."""
    arrivals = _arrivals(requests, run_end_ns)
    if load_kind == "closed_loop":
        return LoadVerdict(
            "closed_loop", "closed loop: clients wait for answers, load follows capacity"
        )
    if not len(arrivals):
        return LoadVerdict("too_short", "no request was sent")
    if arrivals.span_s == 0:
        at = arrivals.offered[0] / NS_PER_S
        return LoadVerdict("offline", f"offline: all requests at t={at:g}")
    if len(arrivals) < _MIN_REQUESTS:
        return LoadVerdict("too_short", f"{len(arrivals)} requests are too few to tell overload")
    if _queue_grew(arrivals) or _backlog_grew(arrivals):
        return LoadVerdict("overloaded", _overload_sentence(arrivals))
    unfinished = int((arrivals.finished > arrivals.offered[-1]).sum())
    if _filling(arrivals) or unfinished > _MAX_UNFINISHED * len(arrivals):
        return LoadVerdict(
            "too_short",
            f"too short to tell overload: {unfinished} of {len(arrivals)} requests were "
            "unfinished at the last arrival",
        )
    return LoadVerdict("stable", "the backlog did not grow beyond chance over the arrivals")


def _arrivals(requests: Columns, run_end_ns: int) -> _Arrivals:
    reason = requests["finish_reason"]
    kept = (requests["arrival_ns"] >= 0) & (reason != FinishReason.REJECTED)
    columns = {name: column[kept].astype(np.int64) for name, column in requests.items()}
    offered = columns["arrival_ns"] - columns["client_wait_ns"]
    order = np.lexsort((columns["request_id"], offered))
    finished = np.where(columns["finish_ns"] < 0, _NEVER, columns["finish_ns"])
    admitted = np.where(columns["admitted_ns"] < 0, finished, columns["admitted_ns"])
    tokens = columns["prompt_tokens"] + columns["output_tokens"]
    return _Arrivals(offered[order], admitted[order], finished[order], tokens[order], run_end_ns)


def _queue_grew(arrivals: _Arrivals) -> bool:
    """The queue (client's and server's) has a slope over all arrivals beyond chance."""
    growth = _slope_growth(arrivals, arrivals.admitted, 0.0)
    return growth > _wander(arrivals, len(arrivals))


def _backlog_grew(arrivals: _Arrivals) -> bool:
    """All unfinished requests grew beyond chance and beyond what a rising rate explains.

    This finds overload where everything is admitted at once and the batch swells instead. Only the
    second half of the arrivals is looked at, because at first the backlog fills up to rate x E2E in
    any system; and by Little's law a rate that rises by d adds d x E2E, which is no overload.
    """
    if _filling(arrivals):
        return False
    growth = _slope_growth(arrivals, arrivals.finished, 0.5)
    return growth > _rate_growth(arrivals) + _wander(arrivals, len(arrivals) // 2)


def _rate_growth(arrivals: _Arrivals) -> float:
    """Requests by which the backlog would grow in the second half at the E2E from before it."""
    quarter_ns = _half_span_ns(arrivals) / 2
    edges = arrivals.offered[0] + quarter_ns * np.array([1, 2, 3, 4])
    _, middle, third, fourth = np.searchsorted(arrivals.offered, edges, side="right")
    second_quarter = slice(len(arrivals) // 4, len(arrivals) // 2)
    e2e = np.minimum(arrivals.finished, arrivals.cut_ns)[second_quarter]
    mean_e2e_ns = float((e2e - arrivals.offered[second_quarter]).mean())
    rise = float((fourth - third) - (third - middle)) / quarter_ns
    return max(0.0, 2 * rise * mean_e2e_ns)


def _slope_growth(arrivals: _Arrivals, left: Int64, since: float) -> float:
    """By how many requests a backlog grows over [since, 1] of the arrivals, on its fitted line."""
    first, last = int(arrivals.offered[0]), int(arrivals.offered[-1])
    begin = first + (last - first) * since
    times = np.linspace(begin, last, 200)
    came = np.searchsorted(arrivals.offered, times, side="right")
    gone = np.searchsorted(np.sort(left), times, side="right")
    slope = np.polyfit((times - begin) / (last - begin), came - gone, 1)[0]
    return float(slope)


def _wander(arrivals: _Arrivals, count: int) -> float:
    """Requests by which chance moves a backlog over `count` arrivals, twice over."""
    variation = _squared_variation(np.diff(arrivals.offered)) + _squared_variation(arrivals.tokens)
    return _SIGMAS * float(np.sqrt(count * max(variation, 1.0)))


def _squared_variation(samples: Int64) -> float:
    mean = float(samples.mean())
    return float(samples.var()) / mean**2 if mean > 0 else 0.0


def _half_span_ns(arrivals: _Arrivals) -> float:
    return float(arrivals.offered[-1] - arrivals.offered[0]) / 2


def _filling(arrivals: _Arrivals) -> bool:
    """Whether arrivals end while the backlog may still be filling up for the first time.

    Half of them must last twice the mean E2E of the first tenth, before any queue has built up.
    """
    first = slice(0, max(len(arrivals) // 10, 1))
    e2e = np.minimum(arrivals.finished[first], arrivals.cut_ns) - arrivals.offered[first]
    return _half_span_ns(arrivals) < 2 * float(e2e.mean())


def _rates(arrivals: _Arrivals, kept: NDArray[np.bool_] | None = None) -> str:
    """Requests and tokens per second of the time in which requests arrived."""
    tokens = arrivals.tokens if kept is None else arrivals.tokens[kept]
    requests_per_s, tokens_per_s = len(tokens) / arrivals.span_s, tokens.sum() / arrivals.span_s
    return f"{_rate(requests_per_s)} req/s ({_rate(tokens_per_s)} tok/s)"


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def _overload_sentence(arrivals: _Arrivals) -> str:
    """Offered against served, in requests and tokens per second while requests arrived."""
    last = arrivals.offered[-1]
    served = arrivals.finished <= last
    return (
        f"offered load exceeds capacity: while requests arrived, {_rates(arrivals)} were offered "
        f"and {_rates(arrivals, served)} served; "
        f"at the last arrival {int((~served).sum())} of {len(arrivals)} requests were unfinished. "
        "Queues grow with run length: TTFT and E2E have no steady state."
    )
