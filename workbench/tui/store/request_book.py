"""All requests of a run, finished or not: what is known of each by now."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.core.enums import FinishReason, RequestEvent
from engine.core.events import TABLES, Columns

Int64 = NDArray[np.int64]

UNKNOWN: Final = -1
_DEFAULTS: Final = {"finish_reason": int(FinishReason.NONE), "reject_reason": 0, "tenant": 0}
_ZERO: Final = ("output_tokens", "cached_tokens", "retractions", "recomputed_tokens", "priority")


class RequestBook:
    """The columns of the table `requests`, indexed by request id, and `seen`.

    Requests that have not ended yet are filled in from their lifecycle events as far as these go:
    arrival, admission, first token, prefix hit, retractions. When a request ends, its row of the
    record replaces all that. Ids are rows of the workload, so they are dense.
    """

    def __init__(self) -> None:
        self._capacity = 1024
        self._end = 0
        self._columns: dict[str, NDArray[Any]] = {
            name: np.full(self._capacity, _default(name), dtype)
            for name, dtype in TABLES["requests"].items()
        }
        self._seen = np.zeros(self._capacity, np.bool_)
        self._ended = np.zeros(self._capacity, np.bool_)
        self.version = 0  # changes with every change of any row

    def __len__(self) -> int:
        """One more than the largest id seen."""
        return self._end

    @property
    def seen(self) -> NDArray[np.bool_]:
        """bool[n], whether anything was heard of a request."""
        return self._seen[: self._end]

    @property
    def ended(self) -> NDArray[np.bool_]:
        """bool[n], whether the record holds the final row of a request."""
        return self._ended[: self._end]

    def column(self, name: str) -> NDArray[Any]:
        """A column of `requests`, by request id. A view: do not write to it."""
        return self._columns[name][: self._end]

    def row(self, request_id: int) -> dict[str, int]:
        """All columns of a request. Raises KeyError if it was never heard of."""
        if not (0 <= request_id < self._end and self._seen[request_id]):
            raise KeyError(request_id)
        return {name: int(column[request_id]) for name, column in self._columns.items()}

    def table(self) -> Columns:
        """The requests seen, as the table `requests`, by id."""
        ids = np.flatnonzero(self.seen)
        return {name: column[ids] for name, column in self._columns.items()}

    def add_finished(self, rows: Columns) -> None:
        """Take rows of the table `requests`, which are final."""
        ids = rows["request_id"].astype(np.int64)
        self._reach(ids)
        for name, column in self._columns.items():
            column[ids] = rows[name]
        self._seen[ids] = self._ended[ids] = True
        self.version += 1

    def add_events(self, rows: Columns) -> None:
        """Take rows of the table `lifecycle`."""
        ids = rows["request_id"].astype(np.int64)
        self._reach(ids)
        self._columns["request_id"][ids] = ids
        self._seen[ids] = True
        for event in _HANDLED:
            here = np.flatnonzero(rows["event"] == event)
            here = here[~self._ended[ids[here]]]
            if len(here):
                self._take(event, {name: column[here] for name, column in rows.items()})
        self.version += 1

    def _take(self, event: RequestEvent, rows: Columns) -> None:
        column, ids = self._columns, rows["request_id"].astype(np.int64)
        if event is RequestEvent.ARRIVE:
            column["arrival_ns"][ids] = rows["t_ns"]
            column["prompt_tokens"][ids] = rows["a"]
            column["max_tokens"][ids] = rows["b"]
            column["replica"][ids] = rows["replica"]
        elif event is RequestEvent.ADMIT:
            column["admitted_ns"][ids] = rows["t_ns"]
            column["cached_tokens"][ids] = rows["a"]
            column["replica"][ids] = rows["replica"]
        elif event is RequestEvent.FIRST_TOKEN:
            column["first_token_ns"][ids] = rows["t_ns"]
        elif event is RequestEvent.RETRACT:
            np.add.at(column["retractions"], ids, 1)
        elif event is RequestEvent.FINISH:
            column["finish_ns"][ids] = rows["t_ns"]
            column["finish_reason"][ids] = rows["a"]
            column["output_tokens"][ids] = rows["b"]
        elif event is RequestEvent.REJECT:
            column["finish_ns"][ids] = rows["t_ns"]
            column["finish_reason"][ids] = FinishReason.REJECTED
            column["reject_reason"][ids] = rows["a"]

    def _reach(self, ids: Int64) -> None:
        self._end = max(self._end, int(ids.max(initial=-1)) + 1)
        if self._end <= self._capacity:
            return
        old = self._capacity
        while self._capacity < self._end:
            self._capacity *= 2
        for name, column in self._columns.items():
            self._columns[name] = np.full(self._capacity, _default(name), column.dtype)
            self._columns[name][:old] = column
        self._seen = np.concatenate((self._seen, np.zeros(self._capacity - old, np.bool_)))
        self._ended = np.concatenate((self._ended, np.zeros(self._capacity - old, np.bool_)))


_HANDLED: Final = (
    RequestEvent.ARRIVE,
    RequestEvent.ADMIT,
    RequestEvent.FIRST_TOKEN,
    RequestEvent.RETRACT,
    RequestEvent.FINISH,
    RequestEvent.REJECT,
)


def _default(name: str) -> int:
    return 0 if name in _ZERO else _DEFAULTS.get(name, UNKNOWN)
