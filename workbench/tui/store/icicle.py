"""The prefix cache's tree laid out as an icicle: a row per level, width for tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.tui.store.node_log import TreeState

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Icicle:
    """All nodes with their places; arrays have an entry per node of the tree state.

    Attributes:
        depth: int64[k], roots have 0.
        subtree: int64[k], tokens of the node and of everything below it.
        left, right: float64[k], edges as shares of the width.
    """

    depth: Int64
    subtree: Int64
    left: Float64
    right: Float64

    @property
    def tokens(self) -> int:
        """Tokens of the whole tree."""
        return int(self.subtree[self.depth == 0].sum())


def lay_out(tree: TreeState) -> Icicle:
    """Places for all nodes: children below their parent, the larger subtree first."""
    count = len(tree)
    at = np.searchsorted(tree.node, tree.parent)
    at = np.minimum(at, max(count - 1, 0))
    is_root = (tree.node[at] != tree.parent) if count else np.zeros(0, np.bool_)
    levels = _levels(at, is_root)
    depth, subtree = np.zeros(count, np.int64), tree.tokens.astype(np.int64)
    for number, level in enumerate(levels):
        depth[level] = number
    for level in reversed(levels[1:]):
        np.add.at(subtree, at[level], subtree[level])
    left, right = np.zeros(count), np.zeros(count)
    total = max(int(subtree[levels[0]].sum()) if levels else 0, 1)
    for number, level in enumerate(levels):
        start = left[at[level]] if number else np.zeros(len(level))
        parent = at[level] if number else np.full(len(level), -1)
        order = np.lexsort((tree.node[level], -subtree[level], parent))
        width = subtree[level][order] / total
        first = np.flatnonzero(np.diff(parent[order], prepend=-2))
        before = np.cumsum(width) - width
        offset = before - np.repeat(before[first], np.diff(np.append(first, len(order))))
        left[level[order]] = start[order] + offset
        right[level[order]] = start[order] + offset + width
    return Icicle(depth, subtree, left, right)


def _levels(parent_at: Int64, is_root: NDArray[np.bool_]) -> list[Int64]:
    """Nodes by level, roots first."""
    depth = np.where(is_root, 0, -1)
    levels = [np.flatnonzero(is_root)]
    waiting = np.flatnonzero(~is_root)
    while len(waiting) and len(levels[-1]):
        below = depth[parent_at[waiting]] == len(levels) - 1
        level = waiting[below]
        depth[level] = len(levels)
        waiting = waiting[~below]
        levels.append(level)
    return levels if len(levels[-1]) else levels[:-1]
