"""What the analyses need of a run: its header and its tables, from a record or from memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.core.enums import ItemKind
from engine.core.events import Columns, Detail, recorded_tables
from workbench.record.header import RunHeader

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]


class RunTables(Protocol):
    """A finished or interrupted run; `workbench.record.run_record.RunReader` is one."""

    header: RunHeader

    def table(self, name: str) -> Columns:
        """One table of `engine.core.events.TABLES`; no rows if it was not recorded."""


class CachedRun:
    """A run whose tables are read once."""

    def __init__(self, run: RunTables) -> None:
        self.header = run.header
        self._run = run
        self._tables: dict[str, Columns] = {}

    def table(self, name: str) -> Columns:
        """As `RunTables.table`."""
        if name not in self._tables:
            self._tables[name] = self._run.table(name)
        return self._tables[name]


class MissingDetailError(ValueError):
    """The run was recorded with too little detail for the question; says which would do."""

    def __init__(self, what: str, table: str, recorded: Detail, needed: Detail) -> None:
        super().__init__(
            f"{what} needs the table '{table}', but this run was recorded with "
            f"--detail {recorded.name.lower()}: record it again with "
            f"--detail {needed.name.lower()} or higher"
        )
        self.table = table
        self.needed = needed


def detail_of(run: RunTables) -> Detail:
    """The detail level of the record."""
    return Detail[run.header.detail.upper()]


def require_tables(run: RunTables, what: str, tables: Sequence[str]) -> None:
    """Raise `MissingDetailError` unless `run` records all of `tables`."""
    recorded = detail_of(run)
    needed = max(
        next(level for level in Detail if table in recorded_tables(level)) for table in tables
    )
    for table in tables:
        if table not in recorded_tables(recorded):
            raise MissingDetailError(what, table, recorded, needed)


def int64(columns: Columns, name: str) -> Int64:
    """Column `name` as int64, so that sums and differences cannot overflow."""
    return columns[name].astype(np.int64, copy=False)


def prefills_in(items: Columns, replica: int, step: int) -> tuple[tuple[int, int], ...]:
    """(request id, tokens) of the prefill items of one step, most tokens first."""
    rows = np.flatnonzero((items["step"] == step) & (items["replica"] == replica))
    rows = rows[items["kind"][rows] == ItemKind.PREFILL]
    pairs = zip(
        int64(items, "request_id")[rows].tolist(),
        int64(items, "num_tokens")[rows].tolist(),
        strict=True,
    )
    return tuple(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def starts_of_groups(sorted_keys: Int64) -> Int64:
    """Index of the first row of each run of equal keys. `sorted_keys` int64[n], ascending."""
    if not len(sorted_keys):
        return np.empty(0, np.int64)
    return np.flatnonzero(np.concatenate(([True], sorted_keys[1:] != sorted_keys[:-1])))
