"""The prefix cache's tree after any step: the node log of one replica.

A row says how a node is from now on. The fold of the table `radix` (`workbench.tui.store.kv_fold`)
writes one for every node that changes, also for the ancestors of a locked node and for the lower
half of a split one, of which the record has no row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from workbench.tui.store.growing_table import GrowingTable
from workbench.tui.store.last_rows import LastRows

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Integers = NDArray[np.signedinteger[Any]]

SCHEMA: Final = {
    "step": "int64",
    "node": "int64",
    "parent": "int64",
    "tokens": "int32",
    "locks": "int32",
    "touched_step": "int64",
    "alive": "int8",
}


@dataclass(frozen=True, slots=True)
class TreeState:
    """The nodes of a replica's prefix cache after the planning of a step, by ascending id.

    Attributes:
        step: id of the step.
        node: int64[k], ids; a root has no tokens and parent -1.
        parent: int64[k], ids.
        tokens: int32[k], on the edge to the node.
        locks: int32[k], requests that hold the node or something below it.
        touched_step: int64[k], when the node was last inserted, grown, or part of a hit.
    """

    step: int
    node: Int64
    parent: Int64
    tokens: Int32
    locks: Int32
    touched_step: Int64

    def __len__(self) -> int:
        return len(self.node)

    def locks_of(self, nodes: Integers) -> Int32:
        """Locks of nodes by id, 0 for those that are not there."""
        if not len(self.node):
            return np.zeros(len(nodes), np.int32)
        table = np.zeros(int(self.node[-1]) + 1, np.int32)
        table[self.node] = self.locks
        inside = (nodes >= 0) & (nodes < len(table))
        return np.where(inside, table[np.where(inside, nodes, 0)], np.int32(0))

    def path_to(self, node: int) -> tuple[int, ...]:
        """Ids from the root's child down to a node; empty if the node is not there."""
        path: list[int] = []
        at = int(np.searchsorted(self.node, node))
        while at < len(self.node) and self.node[at] == node and self.parent[at] >= 0:
            path.append(node)
            node = int(self.parent[at])
            at = int(np.searchsorted(self.node, node))
        return tuple(reversed(path))


class NodeLog:
    """Rows of one replica's tree nodes; `after(step)` gives the tree after any step."""

    def __init__(self) -> None:
        self._rows = GrowingTable(SCHEMA)
        self._last = LastRows(1, spacing=2048)
        self._base: dict[str, NDArray[Any]] | None = None  # before the first row held

    def __len__(self) -> int:
        """Rows held."""
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of rows, deltas and keyframes."""
        return self._rows.nbytes + self._last.nbytes

    def append(self, rows: list[tuple[int, ...]]) -> None:
        """Add rows in the order of `SCHEMA`."""
        if not rows:
            return
        table = np.array(rows, np.int64)
        first = self._rows.end
        table[:, 0] = np.maximum.accumulate(table[:, 0])
        self._rows.append({name: table[:, i] for i, name in enumerate(SCHEMA)})
        numbers = np.arange(first, first + len(rows), dtype=np.int32)
        self._last.append(table[:, 1].astype(np.int32), numbers)

    def after(self, step: int) -> TreeState:
        """The tree after the planning of a step."""
        last = self._last.after(self._rows_until(step))
        if self._base is None:
            rows = last[last >= 0]
            rows = rows[self._rows["alive"].take(rows) > 0]
            return _tree(step, {name: self._rows[name].take(rows) for name in SCHEMA})
        column = self._columns_after(step)
        alive = np.flatnonzero(column["alive"] > 0)
        return _tree(step, {name: values[alive] for name, values in column.items()})

    def drop_before(self, step: int) -> None:
        """Forget how it was before a step, as far as keyframes allow."""
        until = self._rows_until(step - 1)
        if until > self._rows.first:
            self._base = self._columns_after(step - 1)
            self._rows.drop_before(until)
            self._last.drop_before(until)

    def _rows_until(self, step: int) -> int:
        return self._rows.first + int(np.searchsorted(self._rows["step"], step, side="right"))

    def _columns_after(self, step: int) -> dict[str, NDArray[Any]]:
        """The last row of every node that ever was, dead ones and unused ids included."""
        last = self._last.after(self._rows_until(step)) - np.int32(self._rows.first)
        new, columns = last >= 0, {}
        for name, dtype in SCHEMA.items():
            column = np.zeros(len(last), dtype)
            if self._base is not None:
                column[: len(self._base[name])] = self._base[name]
            column[new] = self._rows[name][last[new]]
            columns[name] = column
        return columns


def _tree(step: int, column: dict[str, NDArray[Any]]) -> TreeState:
    return TreeState(
        step=step,
        node=column["node"],
        parent=column["parent"],
        tokens=column["tokens"],
        locks=column["locks"],
        touched_step=column["touched_step"],
    )
