"""Which node a split cut in two: the record names the upper half only.

The lower half keeps its id, and ids grow with time. So of all nodes that are later seen below the
upper half, the lower half is the one with a smaller id than the upper's: all others came after it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from engine.core.enums import RadixOp

Row = tuple[int, ...]  # step, replica, op, node, parent, tokens, locks


@dataclass(frozen=True, slots=True)
class Foresight:
    """What later rows tell of earlier splits.

    Attributes:
        lower: upper half -> lower half, as far as a later row tells.
        last_row: node -> number of the last row about it.
    """

    lower: dict[int, int] = field(default_factory=dict)
    last_row: dict[int, int] = field(default_factory=dict)

    def heard_of_later(self, node: int, row: int) -> bool:
        """Whether there is a row about a node after row number `row`."""
        return self.last_row.get(node, -1) > row


def foresee(rows: list[Row]) -> Foresight:
    """Look at rows of the table `radix` of one replica, last to first."""
    found = Foresight()
    if not any(row[2] == RadixOp.SPLIT for row in rows):
        return found
    parent_of: dict[int, int] = {}  # of a node in the next row about it
    below: defaultdict[int, set[int]] = defaultdict(set)
    for number in range(len(rows) - 1, -1, -1):
        _, _, op, node, parent, _, _ = rows[number]
        found.last_row.setdefault(node, number)
        if op == RadixOp.SPLIT:
            older = [other for other in below.pop(node, ()) if other < node]
            if older:
                found.lower[node] = older[0]
                parent_of[older[0]] = parent  # before it was cut it hung where the upper half does
                below[parent].add(older[0])
            parent = -1  # the upper half did not exist before
        before = parent_of.get(node)
        if before != parent:
            if before is not None:
                below[before].discard(node)
            parent_of[node] = parent
            below[parent].add(node)
    return found
