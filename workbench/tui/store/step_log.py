"""The steps of one replica: all columns of the record, and aggregates for any zoom."""

from __future__ import annotations

from math import floor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.core.events import TABLES, Columns
from workbench.tui.store.growing_table import GrowingTable
from workbench.tui.store.mips import Blocks, MipSeries

Int64 = NDArray[np.int64]

SERIES: Final = (
    "prefill_tokens",
    "hit_tokens",
    "decode_requests",
    "gpu_ns",
    "period_ns",
    "running",
    "waiting",
    "cached_pages",
    "free_pages",
    "retracted",
    "evicted_pages",
    "tokens",
)


class StepLog:
    """Steps in the order in which they were committed.

    A step is addressed by its *position*: how many steps of this replica came before it. That is
    its id in the record unless a step failed, as failed steps have no row.

    Derived columns beside those of the table `steps`: `period_ns`, from the end of the step before
    (or the planning, if later) to the end of the step; `tokens`, of prefill and decode together.
    """

    def __init__(self) -> None:
        self._table = GrowingTable({**TABLES["steps"], "period_ns": "int64", "tokens": "int64"})
        self._series = {name: MipSeries() for name in SERIES}
        self._last_end_ns = 0

    def __len__(self) -> int:
        """Steps held."""
        return len(self._table)

    @property
    def first(self) -> int:
        """Position of the oldest step held; 0 unless a ring dropped some."""
        return self._table.first

    @property
    def end(self) -> int:
        """Position that the next step will have."""
        return self._table.end

    @property
    def nbytes(self) -> int:
        """Bytes of the columns, without the aggregates."""
        return self._table.nbytes

    def append(self, columns: Columns) -> None:
        """Add steps of this replica, in order of their ids."""
        count = len(columns["step"])
        if not count:
            return
        end_ns = columns["end_ns"].astype(np.int64)
        before = np.concatenate(([self._last_end_ns], end_ns[:-1]))
        began = np.maximum(columns["plan_ns"], before)
        self._last_end_ns = int(end_ns[-1])
        derived = {
            "period_ns": np.maximum(end_ns - began, 0),
            "tokens": columns["prefill_tokens"].astype(np.int64) + columns["decode_tokens"],
        }
        full: dict[str, NDArray[Any]] = {**columns, **derived}
        self._table.append(full)
        for name, series in self._series.items():
            series.append(full[name])

    def column(self, name: str) -> NDArray[Any]:
        """A column of all steps held; its entry 0 is the step at position `first`."""
        return self._table[name]

    def at(self, position: int) -> dict[str, int]:
        """All columns of one step. Raises IndexError if it is not held."""
        return self._table.row(position)

    def blocks(self, name: str, level: int, first: int, last: int) -> Blocks:
        """Aggregates of one of `SERIES`; see `MipSeries.blocks`."""
        return self._series[name].blocks(level, first, last)

    def position_at(self, t_ns: float) -> int:
        """Position of the last step that had ended at a time; `first` if none had."""
        at = int(np.searchsorted(self._table["end_ns"], floor(t_ns), side="right")) - 1
        return self.first + max(at, 0)

    def position_planned(self, t_ns: float) -> int:
        """Position of the last step planned at or before a time; `first` if none was."""
        at = int(np.searchsorted(self._table["plan_ns"], floor(t_ns), side="right")) - 1
        return self.first + max(at, 0)

    def position_of(self, step: int) -> int:
        """Position of the step with an id, or of the last one before it that is held."""
        at = int(np.searchsorted(self._table["step"], step, side="right")) - 1
        return self.first + max(at, 0)

    def drop_before(self, position: int) -> None:
        """Forget all steps before a position."""
        self._table.drop_before(position)
        for series in self._series.values():
            series.drop_before(position)
