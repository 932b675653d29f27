"""Who holds each KV page after any step: the page log of one replica.

Rows are the table `memory`, in its order, with the tree node that a cached run of pages belongs to;
a row with op `MOVE` says that pages went to another node, because theirs was split.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.core.enums import MemoryOp
from workbench.tui.store.growing_table import GrowingTable
from workbench.tui.store.last_rows import NEVER, LastRows

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

FREE: Final = -2  # owner of a page that nobody holds
CACHE: Final = -1  # owner of a page of the prefix cache
NO_NODE: Final = 0
MOVE: Final = 100  # beside the values of MemoryOp

_SCHEMA: Final = {"step": "int64", "owner": "int64", "node": "int64"}


class PageState:
    """All pages of a replica after the planning of a step; one entry per page.

    Each column is made when it is first asked for, as few views want all of them. Nothing of it may
    be written to.

    Attributes:
        step: id of the step.
    """

    def __init__(
        self, step: int, rows: GrowingTable, last: Int32, given: Int32, base: PageState | None
    ) -> None:
        self.step = step
        self._columns = {name: rows[name] for name in _SCHEMA}
        self._last, self._given = last - np.int32(rows.first), given - np.int32(rows.first)
        self._base = base  # before the first row held, once rows were dropped

    def __len__(self) -> int:
        return len(self._last)

    @cached_property
    def owner(self) -> Int64:
        """int64[n], the request that holds the page, or `CACHE`, or `FREE`."""
        return self._of_last("owner", FREE)

    @cached_property
    def node(self) -> Int64:
        """int64[n], the tree node of a cached page; `NO_NODE` of any other."""
        return self._of_last("node", NO_NODE)

    @cached_property
    def since_step(self) -> Int64:
        """int64[n], when the page last changed hands; NEVER: it never did."""
        return self._of_last("step", NEVER)

    @cached_property
    def writer(self) -> Int64:
        """int64[n], the request that the page was last given to; NEVER: to none so far."""
        base = None if self._base is None else self._base.writer
        return _gather(self._columns["owner"], self._given, NEVER, base)

    def _of_last(self, name: str, absent: int) -> Int64:
        bases = {"owner": "owner", "node": "node", "step": "since_step"}
        base = None if self._base is None else getattr(self._base, bases[name])
        return _gather(self._columns[name], self._last, absent, base)


class PageLog:
    """Rows of one replica's pages; `after(step)` gives the state after any step."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._rows = GrowingTable(_SCHEMA)
        self._last = LastRows(num_pages)
        self._given = LastRows(num_pages)  # rows that gave a page to a request
        self._base: PageState | None = None  # before the first row held, once rows were dropped

    def __len__(self) -> int:
        """Rows held."""
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of rows, deltas and keyframes."""
        return self._rows.nbytes + self._last.nbytes + self._given.nbytes

    def append(
        self, step: Int64, op: Int64, owner: Int64, node: Int64, start: Int64, num: Int64
    ) -> None:
        """Add rows; row i is about pages `start[i]` to `start[i] + num[i] - 1`."""
        first = self._rows.end
        step = np.maximum.accumulate(step)
        gone = (op == MemoryOp.FREE) | (op == MemoryOp.EVICT)
        owner = np.where(gone, FREE, owner)
        self._rows.append({"step": step, "owner": owner, "node": node})
        pages, rows = _pages_of(start, num, first)
        self._last.append(pages, rows)
        given = (op == MemoryOp.ALLOC)[rows - first]
        self._given.append(pages[given], rows[given])

    def rows_until(self, step: int) -> int:
        """Number of the first row after a step."""
        return self._rows.first + int(np.searchsorted(self._rows["step"], step, side="right"))

    def after(self, step: int) -> PageState:
        """The state after the planning of a step. Nothing of it may be written to."""
        until = self.rows_until(step)
        last, given = self._last.after(until), self._given.after(until)
        return PageState(step, self._rows, last, given, self._base)

    def drop_before(self, step: int) -> None:
        """Forget how it was before a step, as far as keyframes allow."""
        until = self.rows_until(step - 1)
        if until <= self._rows.first:
            return
        self._base = self.after(step - 1)
        self._rows.drop_before(until)
        self._last.drop_before(until)
        self._given.drop_before(until)


def _pages_of(start: Int64, num: Int64, first_row: int) -> tuple[Int32, Int32]:
    """The single pages of page runs, and the row of each."""
    rows = np.repeat(np.arange(len(num), dtype=np.int32), num)
    offset = np.arange(len(rows)) - np.repeat(np.cumsum(num) - num, num)
    pages = (start[rows] + offset).astype(np.int32)
    return pages, rows + np.int32(first_row)


def _gather(column: Int64, at: Int32, absent: int, base: Int64 | None) -> Int64:
    """`column[at]`; where `at` is negative, `base`, or without one `absent`."""
    old = at < 0
    found = column[np.maximum(at, 0)] if len(column) else np.empty(len(at), np.int64)
    found[old] = absent if base is None else base[old]
    return found
