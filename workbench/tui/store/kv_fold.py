"""From the tables `memory` and `radix` to page and node logs that any step can be read from.

The record says little on purpose: a lock is told of the deepest node only, a split of the upper
half only, and which pages a node holds is told by neither table. The fold completes it:

- A lock holds all nodes up to the root.
- The pages of a node are those of the `CACHE` rows that belong to its `INSERT` row: both tables
  keep their order, and an insertion of n tokens comes with n / page_size cached pages.
- The lower half of a split is a child of the same parent, longer than the upper half and held by as
  many requests. Where several are, the one used last is taken, and as soon as a row shows another
  parent for a node than was thought, the error is put right.

Rows are folded in whole steps, as far as the caller's budget goes, so that a view can catch up with
a fast run over several frames.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.core.enums import MemoryOp, RadixOp
from engine.core.events import TABLES, Columns
from workbench.tui.store.growing_table import GrowingTable
from workbench.tui.store.node_log import NodeLog
from workbench.tui.store.page_log import CACHE, MOVE, NO_NODE, PageLog

Int64 = NDArray[np.int64]
Run = tuple[int, int]  # first page, pages


@dataclass(slots=True)
class _Node:
    """A node as far as it is known."""

    parent: int
    tokens: int = 0
    locks: int = 0
    touched_step: int = -1
    runs: list[Run] = field(default_factory=list)
    children: set[int] = field(default_factory=set)


class KvFold:
    """Folds one replica's rows; `pages` and `nodes` hold what is folded."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.pages = PageLog(num_pages)
        self.nodes = NodeLog()
        self._page_size = page_size
        self._memory = GrowingTable(TABLES["memory"])  # rows that wait to be folded
        self._radix = GrowingTable(TABLES["radix"])
        self._tree: dict[int, _Node] = {}
        self._guessed: dict[int, int] = {}  # upper half -> node taken for its lower half
        self._rows: list[tuple[int, ...]] = []  # node rows of this fold

    @property
    def backlog(self) -> int:
        """Rows that wait to be folded."""
        return len(self._memory) + len(self._radix)

    def add(self, memory: Columns | None, radix: Columns | None) -> None:
        """Take rows of this replica."""
        if memory is not None:
            self._memory.append(memory)
        if radix is not None:
            self._radix.append(radix)

    def next_step(self) -> int | None:
        """Step of the oldest row that waits; None if none does."""
        waiting = [int(t["step"][0]) for t in (self._memory, self._radix) if len(t)]
        return min(waiting, default=None)

    def fold(self, max_rows: int | None = None) -> None:
        """Fold the rows that wait, or whole steps of about so many rows."""
        memory, radix = self._cut(max_rows)
        if not len(memory["step"]) and not len(radix["step"]):
            return
        cached = _CacheRows(memory)
        moves: list[tuple[int, int, int, Run]] = []  # position, step, node, pages
        for row in zip(*(column.tolist() for column in radix.values()), strict=True):
            self._fold_radix(row, cached, moves)
        self.nodes.append(self._rows)
        self._rows = []
        _append_pages(self.pages, memory, cached.node_of_row, moves)

    def _cut(self, max_rows: int | None) -> tuple[Columns, Columns]:
        """Take the waiting rows of whole steps out of the queues."""
        tables = (self._memory, self._radix)
        limit = None
        if max_rows is not None:
            steps = [int(t["step"][max_rows]) for t in tables if len(t) > max_rows]
            limit = min(steps, default=None)
            if limit is not None and limit == self.next_step():
                limit += 1  # a step is folded whole, however large
        taken = []
        for table in tables:
            steps_of = np.maximum.accumulate(table["step"]) if len(table) else table["step"]
            count = len(table) if limit is None else int(np.searchsorted(steps_of, limit))
            taken.append({name: table[name][:count].copy() for name in table.names()})
            table.drop_before(table.first + count)
        return taken[0], taken[1]

    def _fold_radix(
        self,
        row: list[int] | tuple[int, ...],
        cached: _CacheRows,
        moves: list[tuple[int, int, int, Run]],
    ) -> None:
        step, _, op, node_id, parent, tokens, locks = row
        if op == RadixOp.SPLIT:
            self._split(step, node_id, parent, tokens, locks, cached, moves)
            return
        node = self._place(step, node_id, parent, tokens, op)
        if op == RadixOp.INSERT:
            pages = (tokens - node.tokens) // self._page_size
            node.runs += cached.take_inserted(pages, node_id)
            node.touched_step = step
        elif op == RadixOp.EVICT:
            self._evict(step, node_id, node, tokens, locks, cached)
            return
        elif op == RadixOp.TOUCH:
            node.touched_step = step
        elif op == RadixOp.LOCK:
            self._lock_above(step, node.parent, 1)
        elif op == RadixOp.UNLOCK:
            self._lock_above(step, node.parent, -1)
        node.tokens, node.locks = tokens, locks
        self._write(step, node_id, node)

    def _place(self, step: int, node_id: int, parent: int, tokens: int, op: int) -> _Node:
        """The node of a row, made if it is new, moved if it hangs elsewhere than was thought."""
        node = self._tree.get(node_id)
        if node is None:
            node = self._tree[node_id] = _Node(parent)
            if parent in self._tree:
                self._tree[parent].children.add(node_id)
            return node
        if node.parent != parent:
            self._put_right(step, node_id, node, parent)
        elif op not in (RadixOp.INSERT, RadixOp.EVICT):
            node.tokens = tokens
        return node

    def _split(
        self,
        step: int,
        upper_id: int,
        parent: int,
        tokens: int,
        locks: int,
        cached: _CacheRows,
        moves: list[tuple[int, int, int, Run]],
    ) -> None:
        upper = self._tree[upper_id] = _Node(parent, tokens, locks, step)
        lower_id = self._lower_half(parent, tokens, locks)
        if parent in self._tree:
            self._tree[parent].children.add(upper_id)
        if lower_id is not None:
            self._guessed[upper_id] = lower_id
            lower = self._tree[lower_id]
            upper.touched_step = lower.touched_step
            self._hang_below(upper_id, upper, lower_id, lower)
            moves += [(cached.position, step, upper_id, run) for run in upper.runs]
            self._write(step, lower_id, lower)
        self._write(step, upper_id, upper)

    def _lower_half(self, parent: int, tokens: int, locks: int) -> int | None:
        siblings = self._tree[parent].children if parent in self._tree else ()
        able = [
            (node.touched_step, node_id)
            for node_id in siblings
            if (node := self._tree[node_id]).tokens > tokens and node.locks == locks
        ]
        return max(able)[1] if able else None

    def _hang_below(self, upper_id: int, upper: _Node, lower_id: int, lower: _Node) -> None:
        """Give the first part of `lower` to `upper`, which comes between it and its parent."""
        pages = upper.tokens // self._page_size
        upper.runs, lower.runs = _cut_runs(lower.runs, pages)
        lower.tokens -= upper.tokens
        self._tree[lower.parent].children.discard(lower_id)
        lower.parent = upper_id
        upper.children.add(lower_id)

    def _put_right(self, step: int, node_id: int, node: _Node, parent: int) -> None:
        """A row shows that `node` hangs below another parent: an earlier guess was wrong."""
        wrong_id = self._guessed.get(parent)
        upper = self._tree.get(parent)
        if upper is not None and wrong_id is not None and upper.parent == node.parent:
            wrong = self._tree.get(wrong_id)
            if wrong is not None and wrong.parent == parent:
                wrong.runs = upper.runs + wrong.runs
                wrong.tokens += upper.tokens
                wrong.parent = upper.parent
                upper.children.discard(wrong_id)
                self._tree[upper.parent].children.add(wrong_id)
                self._write(step, wrong_id, wrong)
            self._guessed[parent] = node_id
            self._hang_below(parent, upper, node_id, node)
            self._write(step, parent, upper)
            return
        if node.parent in self._tree:
            self._tree[node.parent].children.discard(node_id)
        node.parent = parent
        if upper is not None:
            upper.children.add(node_id)

    def _evict(
        self, step: int, node_id: int, node: _Node, tokens: int, locks: int, cached: _CacheRows
    ) -> None:
        """A leaf goes, or loses its end: then fewer tokens are left than it had."""
        trimmed = tokens < node.tokens
        gone = (node.tokens - tokens) // self._page_size if trimmed else _len_of(node.runs)
        cached.take_evicted(gone)
        if trimmed:
            node.runs, _ = _cut_runs(node.runs, tokens // self._page_size)
            node.tokens, node.locks = tokens, locks
            self._write(step, node_id, node)
            return
        self._write(step, node_id, node, alive=0)
        del self._tree[node_id]
        self._guessed.pop(node_id, None)
        if node.parent in self._tree:
            self._tree[node.parent].children.discard(node_id)

    def _lock_above(self, step: int, node_id: int, change: int) -> None:
        while (node := self._tree.get(node_id)) is not None and node.parent >= 0:
            node.locks += change
            self._write(step, node_id, node)
            node_id = node.parent

    def _write(self, step: int, node_id: int, node: _Node, alive: int = 1) -> None:
        row = (step, node_id, node.parent, node.tokens, node.locks, node.touched_step, alive)
        self._rows.append(row)


class _CacheRows:
    """The `CACHE` and `EVICT` rows of a stretch of `memory`, taken in order.

    Attributes:
        node_of_row: int64[rows], the node of each `CACHE` row that was taken.
        position: row of `memory` after the last one taken.
    """

    def __init__(self, memory: Columns) -> None:
        op = memory["op"]
        self._caches = deque(_runs(memory, op == MemoryOp.CACHE))
        self._evicts = deque(_runs(memory, op == MemoryOp.EVICT))
        self._left_of_evict = 0
        self.node_of_row = np.full(len(op), NO_NODE, np.int64)
        self.position = 0

    def take_inserted(self, pages: int, node: int) -> list[Run]:
        """The next cached runs of `pages` pages together, which belong to `node`."""
        taken: list[Run] = []
        while pages > 0 and self._caches:
            row, start, num = self._caches.popleft()
            self.node_of_row[row] = node
            self.position = max(self.position, row + 1)
            taken.append((start, num))
            pages -= num
        return taken

    def take_evicted(self, pages: int) -> None:
        """Pass over evicted runs of `pages` pages together."""
        while pages > self._left_of_evict and self._evicts:
            row, _, num = self._evicts.popleft()
            self._left_of_evict += num
            self.position = max(self.position, row + 1)
        self._left_of_evict = max(self._left_of_evict - pages, 0)


def _len_of(runs: list[Run]) -> int:
    """Pages of runs together."""
    return sum(num for _, num in runs)


def _runs(memory: Columns, where: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    rows = np.flatnonzero(where)
    columns = (rows, memory["start_page"][rows], memory["num_pages"][rows])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _cut_runs(runs: list[Run], pages: int) -> tuple[list[Run], list[Run]]:
    """The first `pages` pages of runs, and the rest."""
    head: list[Run] = []
    for at, (start, num) in enumerate(runs):
        if num > pages:
            if pages:
                head.append((start, pages))
            return head, [(start + pages, num - pages), *runs[at + 1 :]]
        head.append((start, num))
        pages -= num
    return head, []


def _append_pages(
    pages: PageLog, memory: Columns, node: Int64, moves: list[tuple[int, int, int, Run]]
) -> None:
    """Write the rows of `memory` with their nodes, and moves at their positions between them."""
    columns = {
        "step": memory["step"].astype(np.int64),
        "op": memory["op"].astype(np.int64),
        "owner": memory["owner"].astype(np.int64),
        "node": node,
        "start": memory["start_page"].astype(np.int64),
        "num": memory["num_pages"].astype(np.int64),
    }
    if moves:
        at = np.array([position for position, *_ in moves])
        new = np.array([(s, MOVE, CACHE, node_id, *run) for _, s, node_id, run in moves], np.int64)
        columns = {
            name: np.asarray(np.insert(column, at, new[:, i]), np.int64)
            for i, (name, column) in enumerate(columns.items())
        }
    pages.append(**columns)
