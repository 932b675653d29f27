"""From the tables `memory` and `radix` to page and node logs that any step can be read from.

The record says little on purpose: a lock is told of the deepest node only, a split of the upper
half only, and which pages a node holds is told by neither table. The fold completes it:

- A lock holds all nodes up to the root.
- The pages of a node are those of the `CACHE` rows that belong to its `INSERT` row: both tables
  keep their order, and an insertion of n tokens comes with n / page_size cached pages.
- The lower half of a split is told by later rows (`workbench.tui.store.split_halves`). Of a node of
  which nothing is heard later nobody can say what it was cut from: then a child of the same parent
  is taken that is longer than the upper half, and `uncertain_splits` counts it. Which of the cached
  pages belong to the two halves is uncertain then, and how many is not. Where a later row shows
  another parent for a node than was thought, that is put right.

Rows are folded in whole steps, as far as the caller's budget goes, so that a view can catch up with
a fast run over several frames.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.core.enums import MemoryOp, RadixOp
from engine.core.events import TABLES, Columns, empty_columns
from workbench.tui.store.growing_table import GrowingTable
from workbench.tui.store.node_log import NodeLog
from workbench.tui.store.page_log import CACHE, MOVE, NO_NODE, PageLog
from workbench.tui.store.split_halves import Foresight, Row, foresee

Int64 = NDArray[np.int64]
Run = tuple[int, int]  # first page, pages

_LOOK_AHEAD: Final = 20_000  # rows beyond those folded that may tell of a split


@dataclass(slots=True)
class _Node:
    """A node as far as it is known."""

    parent: int
    tokens: int = 0
    locks: int = 0
    touched_step: int = -1
    runs: list[Run] = field(default_factory=list)
    children: set[int] = field(default_factory=set)


class _Move(NamedTuple):
    """Pages that go to another node, before the row of `memory` at `position`."""

    position: int
    step: int
    node: int
    run: Run


class KvFold:
    """Folds one replica's rows.

    Attributes:
        pages, nodes: what is folded.
        uncertain_splits: of how many splits the lower half had to be guessed.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.pages = PageLog(num_pages)
        self.nodes = NodeLog()
        self.uncertain_splits = 0
        self._page_size = page_size
        self._memory = GrowingTable(TABLES["memory"])  # rows that wait to be folded
        self._radix = GrowingTable(TABLES["radix"])
        self._tree: dict[int, _Node] = {}
        self._guessed: dict[int, int] = {}  # upper half -> node taken for its lower half
        self._foresight = Foresight()
        # Of the fold that is going on:
        self._cached = _CacheRows(empty_columns("memory"))
        self._moves: list[_Move] = []
        self._node_rows: list[tuple[int, ...]] = []

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
        self._foresight = foresee(self._rows_ahead(max_rows))
        memory, radix = self._cut(max_rows)
        if not len(memory["step"]) and not len(radix["step"]):
            return
        self._cached, self._moves = _CacheRows(memory), []
        for number, row in enumerate(_rows(radix)):
            self._fold_radix(number, row)
        self.nodes.append(self._node_rows)
        self._node_rows = []
        _append_pages(self.pages, memory, self._cached.node_of_row, self._moves)

    def _rows_ahead(self, max_rows: int | None) -> list[Row]:
        """Rows to look at for what they tell of splits: all, or some more than are folded."""
        end = len(self._radix) if max_rows is None else max_rows + _LOOK_AHEAD
        part = {name: self._radix[name][:end] for name in TABLES["radix"]}
        has_splits = bool((part["op"] == RadixOp.SPLIT).any())
        return _rows(part) if has_splits else []

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

    def _fold_radix(self, number: int, row: Row) -> None:
        step, _, op, node_id, parent, tokens, locks = row
        if op == RadixOp.SPLIT:
            self._split(number, row)
            return
        node = self._place(step, node_id, parent)
        if op == RadixOp.INSERT:
            pages = (tokens - node.tokens) // self._page_size
            node.runs += self._cached.take_inserted(pages, node_id)
            node.touched_step = step
        elif op == RadixOp.EVICT:
            self._evict(step, node_id, node, tokens, locks)
            return
        elif op == RadixOp.TOUCH:
            node.touched_step = step
        elif op == RadixOp.LOCK:
            self._lock_above(step, node.parent, 1)
        elif op == RadixOp.UNLOCK:
            self._lock_above(step, node.parent, -1)
        node.tokens, node.locks = tokens, locks
        self._write(step, node_id, node)

    def _place(self, step: int, node_id: int, parent: int) -> _Node:
        """The node of a row, made if it is new, moved if it hangs elsewhere than was thought."""
        node = self._tree.get(node_id)
        if node is None:
            node = self._tree[node_id] = _Node(parent)
            if parent in self._tree:
                self._tree[parent].children.add(node_id)
        elif node.parent != parent:
            self._put_right(step, node_id, node, parent)
        return node

    def _split(self, number: int, row: Row) -> None:
        step, _, _, upper_id, parent, tokens, locks = row
        lower_id = self._foresight.lower.get(upper_id)
        if lower_id is None or lower_id not in self._tree:
            lower_id = self._likely_half(number, parent, tokens, locks)
            if lower_id is None and self._doubt(step, parent, tokens):
                lower_id = self._likely_half(number, parent, tokens, locks)
            self.uncertain_splits += 1
        elif self._tree[lower_id].parent != parent:
            self._put_right(step, lower_id, self._tree[lower_id], parent)
        upper = self._tree[upper_id] = _Node(parent, tokens, locks, step)
        if parent in self._tree:
            self._tree[parent].children.add(upper_id)
        if lower_id is not None:
            upper.touched_step = self._tree[lower_id].touched_step
            self._hang_below(step, [upper_id], lower_id)
        self._write(step, upper_id, upper)

    def _likely_half(self, number: int, parent: int, tokens: int, locks: int) -> int | None:
        """The child of a parent that a split most likely cut: of whom nothing is heard later."""
        siblings = self._tree[parent].children if parent in self._tree else ()
        able = [
            (not self._foresight.heard_of_later(node_id, number), node.locks == locks,
             node.touched_step, node_id)
            for node_id in siblings
            if (node := self._tree[node_id]).tokens > tokens
        ]  # fmt: skip
        return max(able)[-1] if able else None

    def _doubt(self, step: int, parent: int, tokens: int) -> bool:
        """No child of a parent has more tokens, so an earlier guess was wrong; whether one can be.

        Either the parent is an upper half itself, and a longer sibling of it was cut; or one of its
        children is, and what was hung below that child belongs here.
        """
        for upper_id in (
            parent,
            *sorted(self._tree[parent].children if parent in self._tree else ()),
        ):
            upper, wrong = self._tree.get(upper_id), self._guessed.get(upper_id)
            if upper is None or wrong is None or upper.parent not in self._tree:
                continue
            needed = upper.tokens + (tokens if upper_id == parent else 0)
            siblings = self._tree[upper.parent].children - {upper_id}
            able = [i for i in siblings if self._tree[i].tokens > needed]
            if able:
                right = max(able, key=lambda i: self._tree[i].touched_step)
                self._put_right(step, right, self._tree[right], upper_id)
                return True
        return False

    def _hang_below(self, step: int, uppers: list[int], lower_id: int) -> None:
        """Give the first parts of a node to upper halves, top to bottom, and hang it below them."""
        lower = self._tree[lower_id]
        for upper_id in uppers:
            upper = self._tree[upper_id]
            upper.runs, lower.runs = _cut_runs(lower.runs, upper.tokens // self._page_size)
            lower.tokens -= upper.tokens
            self._move(step, upper_id, upper.runs)
        self._guessed[uppers[-1]] = lower_id
        self._reparent(lower_id, lower, uppers[-1])
        self._write(step, lower_id, lower)

    def _put_right(self, step: int, node_id: int, node: _Node, parent: int) -> None:
        """A row shows that `node` hangs below another parent: an earlier guess was wrong."""
        uppers = self._between(node.parent, parent)
        above = sum(self._tree[upper].tokens for upper in uppers)
        if not uppers or node.tokens <= above:
            self._reparent(node_id, node, parent)
            return
        wrong_id = self._guessed.get(parent)
        wrong = None if wrong_id is None else self._tree.get(wrong_id)
        if wrong is not None and wrong_id is not None and wrong.parent == parent:
            borrowed = [run for upper in uppers for run in self._tree[upper].runs]
            self._move(step, wrong_id, borrowed)
            wrong.runs = borrowed + wrong.runs
            wrong.tokens += above
            self._reparent(wrong_id, wrong, node.parent)
            self._write(step, wrong_id, wrong)
        self._hang_below(step, uppers, node_id)

    def _between(self, ancestor: int, node_id: int) -> list[int]:
        """The nodes from below an ancestor down to a node; none if it is no ancestor."""
        path: list[int] = []
        while (node := self._tree.get(node_id)) is not None:
            path.append(node_id)
            if node.parent == ancestor:
                return path[::-1]
            node_id = node.parent
        return []

    def _reparent(self, node_id: int, node: _Node, parent: int) -> None:
        if node.parent in self._tree:
            self._tree[node.parent].children.discard(node_id)
        node.parent = parent
        if parent in self._tree:
            self._tree[parent].children.add(node_id)

    def _evict(self, step: int, node_id: int, node: _Node, tokens: int, locks: int) -> None:
        """A leaf goes, or loses its end: then fewer tokens are left than it had."""
        trimmed = tokens < node.tokens
        gone = (node.tokens - tokens) // self._page_size if trimmed else _len_of(node.runs)
        self._cached.take_evicted(gone)
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

    def _move(self, step: int, node_id: int, runs: list[Run]) -> None:
        """Say that pages belong to another node from now on."""
        self._moves += [_Move(self._cached.position, step, node_id, run) for run in runs]

    def _write(self, step: int, node_id: int, node: _Node, alive: int = 1) -> None:
        row = (step, node_id, node.parent, node.tokens, node.locks, node.touched_step, alive)
        self._node_rows.append(row)


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


def _rows(radix: Columns) -> list[Row]:
    """Rows of the table as tuples of integers."""
    return list(zip(*(radix[name].tolist() for name in TABLES["radix"]), strict=True))


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


def _append_pages(pages: PageLog, memory: Columns, node: Int64, moves: list[_Move]) -> None:
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
        moves.sort(key=lambda move: move.position)
        at = np.array([move.position for move in moves])
        new = np.array([(move.step, MOVE, CACHE, move.node, *move.run) for move in moves], np.int64)
        columns = {
            name: np.asarray(np.insert(column, at, new[:, i]), np.int64)
            for i, (name, column) in enumerate(columns.items())
        }
    pages.append(**columns)
