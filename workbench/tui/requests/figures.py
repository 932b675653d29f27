"""Figures of every request, in columns: what filters and orders are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.core.enums import FinishReason
from workbench.tui.store.request_book import RequestBook

Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

_MS: Final = 1e6
_S: Final = 1e9

STATES: Final = (
    "unsent", "queued", "prefill", "decode", "stop", "length", "aborted", "rejected", "error",
    "transferred", "unfinished",
)  # fmt: skip
_STATE_OF_REASON: Final = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORT: "aborted",
    FinishReason.REJECTED: "rejected",
    FinishReason.ERROR: "error",
    FinishReason.TRANSFERRED: "transferred",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A column that can be asked for by name.

    Attributes:
        unit: `ms`, `s`, `tok`, or "" for plain numbers.
        about: what it is.
        of: the column, float64[n] by request id; NaN where it is not known.
    """

    unit: str
    about: str
    of: Callable[[RequestBook], Float64]


def _plain(name: str) -> Callable[[RequestBook], Float64]:
    return lambda book: book.column(name).astype(np.float64)


def _between(start: str, end: str) -> Callable[[RequestBook], Float64]:
    """Milliseconds from one instant of a request to another; NaN while either is missing."""

    def of(book: RequestBook) -> Float64:
        t0, t1 = book.column(start), book.column(end)
        return np.where((t0 >= 0) & (t1 >= 0), (t1 - t0) / _MS, np.nan)

    return of


def _arrival(book: RequestBook) -> Float64:
    t = book.column("arrival_ns")
    return np.where(t >= 0, t / _S, np.nan)


def _tpot(book: RequestBook) -> Float64:
    """As `vllm bench serve`: (E2E - TTFT) / (output tokens - 1)."""
    first, last = book.column("first_token_ns"), book.column("finish_ns")
    gaps = book.column("output_tokens") - 1
    known = (first >= 0) & (last >= 0) & (gaps > 0)
    return np.where(known, (last - first) / _MS / np.maximum(gaps, 1), np.nan)


def _hit_percent(book: RequestBook) -> Float64:
    prompt = np.maximum(book.column("prompt_tokens"), 1)
    share: Float64 = 100 * book.column("cached_tokens") / prompt
    return share


def state_codes(book: RequestBook, at: slice = slice(None)) -> NDArray[np.int8]:
    """int8[n], index into `STATES` of each request, or of those `at` some ids."""
    reason, admitted = book.column("finish_reason")[at], book.column("admitted_ns")[at]
    first, arrival = book.column("first_token_ns")[at], book.column("arrival_ns")[at]
    alive = np.where(first >= 0, 3, np.where(admitted >= 0, 2, np.where(arrival >= 0, 1, 0)))
    codes = alive.astype(np.int8)
    cut_off = book.ended[at] & (reason == FinishReason.NONE) & (arrival >= 0)
    codes[cut_off] = STATES.index("unfinished")
    for number, name in _STATE_OF_REASON.items():
        codes[reason == number] = STATES.index(name)
    return codes


FIGURES: Final[dict[str, Figure]] = {
    "id": Figure("", "number of the request", _plain("request_id")),
    "replica": Figure("", "number of the replica that served it", _plain("replica")),
    "arrival": Figure("s", "when it was sent", _arrival),
    "prompt": Figure("tok", "tokens of its prompt", _plain("prompt_tokens")),
    "hit": Figure("tok", "prompt tokens found in the prefix cache", _plain("cached_tokens")),
    "hitpct": Figure("", "the same, in percent of the prompt", _hit_percent),
    "out": Figure("tok", "tokens that were generated", _plain("output_tokens")),
    "ttft": Figure("ms", "time to first token", _between("arrival_ns", "first_token_ns")),
    "queue": Figure("ms", "from sending to its first step", _between("arrival_ns", "admitted_ns")),
    "tpot": Figure("ms", "time per output token after the first", _tpot),
    "e2e": Figure("ms", "from sending to the last token", _between("arrival_ns", "finish_ns")),
    "retractions": Figure("", "how often it was sent back", _plain("retractions")),
    "recomputed": Figure("tok", "tokens computed again", _plain("recomputed_tokens")),
    "priority": Figure("", "larger is more urgent", _plain("priority")),
    "tenant": Figure("", "namespace of the prefix cache", _plain("tenant")),
}
