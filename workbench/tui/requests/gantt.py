"""What a request did when: phases in cells of logarithmic time since its arrival.

Linear time hides a prefill of 10 ms beside a decode of 10 s; on a log scale both are seen, and all
requests start at the same place.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.core.enums import RequestEvent
from workbench.tui.store import RunStore

Int8 = NDArray[np.int8]
Float64 = NDArray[np.float64]

LEAST_NS: Final = 1e6  # the left edge: everything before it falls into the first cell


class Phase(IntEnum):
    """What a request does."""

    NOTHING = 0
    QUEUED = 1
    PREFILL = 2
    DECODE = 3
    QUEUED_AGAIN = 4
    RECOMPUTE = 5


@dataclass(frozen=True, slots=True)
class LogTime:
    """The axis: cells from `LEAST_NS` to `most_ns`, equally wide in the logarithm.

    Attributes:
        most_ns: right edge.
        cells: how many.
    """

    most_ns: float
    cells: int

    @classmethod
    def up_to(cls, longest_ns: float, cells: int) -> LogTime:
        """An axis on which the longest request ends a little before the edge."""
        return cls(max(longest_ns * 1.15, 20 * LEAST_NS), max(cells, 1))

    def edges_ns(self) -> Float64:
        """float64[cells + 1]; the first is 0, since the first cell holds all that comes before."""
        edges = np.geomspace(LEAST_NS, self.most_ns, self.cells + 1)
        edges[0] = 0.0
        return edges

    def cell_of(self, t_ns: float) -> int:
        """The cell that holds a time since arrival; -1 outside."""
        if not 0 <= t_ns < self.most_ns:
            return -1
        return int(np.searchsorted(self.edges_ns(), t_ns, "right")) - 1

    def ticks(self) -> list[tuple[int, str]]:
        """(cell, label) of each power of ten on it."""
        labels = ("1ms", "10ms", "100ms", "1s", "10s", "100s", "1000s")
        found = []
        for power, label in enumerate(labels):
            cell = self.cell_of(LEAST_NS * 10**power * 1.0001)
            if cell >= 0:
                found.append((cell, label))
        return found


class Phases:
    """Phases of the requests of a run, as far as they are known."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._version = -1
        self._moves: dict[int, list[tuple[int, Phase]]] = {}

    def spans(self, request_id: int, now_ns: int) -> list[tuple[float, float, Phase]]:
        """(start, end, phase) in ns since arrival, in order; what goes on ends now."""
        row = self._store.requests.row(request_id)
        arrival = row["arrival_ns"]
        if arrival < 0:
            return []
        changes = [(arrival, Phase.QUEUED)]
        if row["admitted_ns"] >= 0:
            changes.append((row["admitted_ns"], Phase.PREFILL))
        if row["first_token_ns"] >= 0:
            changes.append((row["first_token_ns"], Phase.DECODE))
        if row["retractions"]:
            changes = sorted([*changes, *self._sent_back(request_id)])
        end = row["finish_ns"] if row["finish_ns"] >= 0 else max(now_ns, changes[-1][0])
        times = [t for t, _ in changes[1:]] + [end]
        return [
            (float(t - arrival), float(until - arrival), phase)
            for (t, phase), until in zip(changes, times, strict=True)
            if until > t
        ]

    def cells(self, request_id: int, axis: LogTime, now_ns: int) -> Int8:
        """int8[cells], the phase that takes most of each cell."""
        edges = axis.edges_ns()
        held = np.zeros((len(Phase), axis.cells))
        for start, end, phase in self.spans(request_id, now_ns):
            overlap = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
            held[phase] += np.maximum(overlap, 0.0)
        cells: Int8 = held.argmax(axis=0).astype(np.int8)
        cells[held.sum(axis=0) == 0] = Phase.NOTHING
        return cells

    def _sent_back(self, request_id: int) -> list[tuple[int, Phase]]:
        """Times at which a request was retracted, and resumed, and decoded again."""
        if self._version != self._store.requests.version:
            self._version = self._store.requests.version
            self._moves = _moves(self._store)
        return self._moves.get(request_id, [])


def _moves(store: RunStore) -> dict[int, list[tuple[int, Phase]]]:
    found: dict[int, list[tuple[int, Phase]]] = {}
    life = store.table("lifecycle")
    for event, phase in (
        (RequestEvent.RETRACT, Phase.QUEUED_AGAIN),
        (RequestEvent.RESUME, Phase.RECOMPUTE),
    ):
        rows = np.flatnonzero(life["event"] == event)
        ids, times = life["request_id"][rows].tolist(), life["t_ns"][rows].tolist()
        for request_id, t_ns in zip(ids, times, strict=True):
            found.setdefault(request_id, []).append((t_ns, phase))
    retracted = np.array(sorted(found), np.int64)
    spans = store.table("decode_spans")
    rows = np.flatnonzero(np.isin(spans["request_id"], retracted))
    ids, times = spans["request_id"][rows].tolist(), spans["token_ns"][rows].tolist()
    for request_id, t_ns in zip(ids, times, strict=True):
        if t_ns >= 0:
            found[request_id].append((t_ns, Phase.DECODE))
    return found
