"""Who holds each KV page after any step: the page log of one replica.

Rows are the table `memory`, in its order, with the tree node that a cached run of pages belongs to;
a row with op `MOVE` says that pages went to another node, because theirs was split.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.core.enums import MemoryOp
from workbench.tui.store.growing_table import GrowingTable
from workbench.tui.store.last_rows import NEVER, LastRows

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Integers = NDArray[np.signedinteger[Any]]

FREE: Final = -2  # owner of a page that nobody holds
CACHE: Final = -1  # owner of a page of the prefix cache
NO_NODE: Final = 0
MOVE: Final = 100  # beside the values of MemoryOp

# Owner and node share an int64, so that one random access to memory fetches both.
_SCHEMA: Final = {"step": "int32", "holder": "int64"}
_NODE, _OWNER = (0, 1) if sys.byteorder == "little" else (1, 0)  # halves of `holder`


@dataclass(frozen=True, slots=True)
class _Base:
    """The columns of a `PageState` of which nothing else is kept."""

    owner: Int32
    node: Int32
    since_step: Int32
    writer: Int32


class PageState:
    """All pages of a replica after the planning of a step; one entry per page.

    Each column is made when it is first asked for, as few views want all of them. Nothing of it may
    be written to.

    Attributes:
        step: id of the step.
    """

    def __init__(
        self,
        step: int,
        rows: GrowingTable,
        last: Int32,
        given: Callable[[], Int32],
        base: _Base | None,
    ) -> None:
        self.step = step
        self._steps, self._holders = rows["step"], rows["holder"]
        self._first = np.int32(rows.first)
        self._last, self._given = _since(last, self._first), given
        self._base = base  # before the first row held, once rows were dropped

    def __len__(self) -> int:
        return len(self._last)

    @property
    def owner(self) -> Int32:
        """int32[n], the request that holds the page, or `CACHE`, or `FREE`."""
        return self._halves[:, _OWNER]

    @property
    def node(self) -> Int32:
        """int32[n], the tree node of a cached page; `NO_NODE` of any other."""
        return self._halves[:, _NODE]

    @cached_property
    def since_step(self) -> Int32:
        """int32[n], when the page last changed hands; NEVER: it never did."""
        base = None if self._base is None else self._base.since_step
        return np.asarray(_gather(self._steps, self._last, NEVER, base), np.int32)

    @cached_property
    def writer(self) -> Int32:
        """int32[n], the request that the page was last given to; NEVER: to none so far."""
        given = _since(self._given(), self._first)
        base = None if self._base is None else _holders(self._base.writer, NO_NODE)
        holders = _gather(self._holders, given, _NEVER_GIVEN, base)
        return holders.view(np.int32).reshape(-1, 2)[:, _OWNER]

    @cached_property
    def _halves(self) -> Int32:
        """int32[n, 2], owner and node."""
        base = None if self._base is None else _holders(self._base.owner, self._base.node)
        return _gather(self._holders, self._last, _UNTOUCHED, base).view(np.int32).reshape(-1, 2)


class PageLog:
    """Rows of one replica's pages; `after(step)` gives the state after any step."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._rows = GrowingTable(_SCHEMA)
        self._last = LastRows(num_pages)
        self._given = LastRows(num_pages)  # rows that gave a page to a request
        self._base: _Base | None = None  # before the first row held, once rows were dropped

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
        holder = _holders(np.where(gone, FREE, owner), node)
        self._rows.append({"step": step, "holder": holder})
        pages, rows = _pages_of(start, num, first)
        self._last.append(pages, rows)
        given = (op == MemoryOp.ALLOC)[rows - first]
        self._given.append(pages[given], rows[given])

    def rows_until(self, step: int) -> int:
        """Number of the first row after a step."""
        wanted = np.int32(step)  # of the column's own type, or numpy would convert the column
        return self._rows.first + int(np.searchsorted(self._rows["step"], wanted, side="right"))

    def after(self, step: int) -> PageState:
        """The state after the planning of a step. Nothing of it may be written to."""
        until = self.rows_until(step)
        given = partial(self._given.after, until)
        return PageState(step, self._rows, self._last.after(until), given, self._base)

    def drop_before(self, step: int) -> None:
        """Forget how it was before a step, as far as keyframes allow."""
        until = self.rows_until(step - 1)
        if until <= self._rows.first:
            return
        before = self.after(step - 1)
        self._base = _Base(
            before.owner.copy(), before.node.copy(), before.since_step, before.writer.copy()
        )
        self._rows.drop_before(until)
        self._last.drop_before(until)
        self._given.drop_before(until)


def _pages_of(start: Int64, num: Int64, first_row: int) -> tuple[Int32, Int32]:
    """The single pages of page runs, and the row of each."""
    rows = np.repeat(np.arange(len(num), dtype=np.int32), num)
    offset = np.arange(len(rows)) - np.repeat(np.cumsum(num) - num, num)
    pages = (start[rows] + offset).astype(np.int32)
    return pages, rows + np.int32(first_row)


def _since(rows: Int32, first: np.int32) -> Int32:
    """Row numbers counted from the first row held; what came before it is negative."""
    return rows if first == 0 else rows - first


def _holders(owner: Integers, node: Integers | int) -> Int64:
    """Owner and node in one integer."""
    both = np.empty((len(owner), 2), np.int32)
    both[:, _OWNER], both[:, _NODE] = owner, node
    return both.view(np.int64)[:, 0]


_UNTOUCHED: Final = int(_holders(np.array([FREE]), NO_NODE)[0])
_NEVER_GIVEN: Final = int(_holders(np.array([NEVER]), NO_NODE)[0])


def _gather(column: Integers, at: Int32, absent: int, base: Integers | None) -> Int64:
    """`column[at]`; where `at` is negative, `base`, or without one `absent`."""
    if not len(column):
        return np.full(len(at), absent, np.int64) if base is None else base.astype(np.int64)
    found: Int64 = column.take(at, mode="clip")
    old = np.flatnonzero(at < 0)
    found[old] = absent if base is None else base[old]
    return found
