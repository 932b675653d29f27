"""Where one request is, in every chart: its pages, its path in the tree, its steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.core.enums import ItemKind
from workbench.tui.store.node_log import TreeState
from workbench.tui.store.page_log import CACHE, PageState
from workbench.tui.store.replica_log import ReplicaLog

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class RequestPages:
    """What a request has in KV memory after a step.

    Attributes:
        pages: bool[pages], those it holds, has given to the cache, or found there.
        path: tree nodes from the root's child down to the deepest that holds pages it computed.
    """

    pages: Bool
    path: tuple[int, ...]


def pages_of(request_id: int, pages: PageState, tree: TreeState) -> RequestPages:
    """The pages and the path of a request."""
    own = (pages.owner == request_id) | ((pages.writer == request_id) & (pages.owner == CACHE))
    nodes = np.unique(pages.node[own])
    paths = [tree.path_to(int(node)) for node in nodes if node > 0]
    path = max(paths, key=len, default=())
    return RequestPages(own | np.isin(pages.node, path) & (pages.node > 0), path)


@dataclass(frozen=True, slots=True)
class RequestSteps:
    """The steps that a request took part in.

    Attributes:
        prefill: int64[n], positions of the steps that prefilled some of it, ascending.
        decode: (first, last) positions of its stays in the decode batch, both included.
    """

    prefill: Int64
    decode: tuple[tuple[int, int], ...]

    def in_columns(self, first: Int64, last: Int64) -> tuple[Bool, Bool]:
        """Whether any step of [first, last) prefilled it, or decoded it. bool[columns] each."""
        low = np.searchsorted(self.prefill, first)
        prefills: Bool = np.searchsorted(self.prefill, last) > low
        decodes = np.zeros(len(first), np.bool_)
        for start, end in self.decode:
            decodes |= (first <= end) & (last > start)
        return prefills, decodes & (last > first)


def steps_of(request_id: int, replica: ReplicaLog, decoding_since_ns: int = -1) -> RequestSteps:
    """The steps of a request on a replica; a stay that goes on lasts to the end of the record.

    Args:
        request_id: of the request.
        replica: where it ran.
        decoding_since_ns: when its first token came, if it has not ended; -1: it has, or none came.
    """
    items, steps = replica.items, replica.steps
    mine = (items["request_id"] == request_id) & (items["kind"] == ItemKind.PREFILL)
    ids = items["step"][mine]
    prefill = np.searchsorted(steps.column("step"), ids) + steps.first
    spans = replica.spans
    rows = np.flatnonzero(spans["request_id"] == request_id)
    iterations = np.maximum.accumulate(steps.column("decode_iteration"))
    stays = []
    for row in rows.tolist():
        begin, length = int(spans["first_iteration"][row]), int(spans["scheduled"][row])
        if length:
            ends = np.searchsorted(iterations, [begin, begin + length - 1])
            stays.append((int(ends[0]) + steps.first, int(ends[1]) + steps.first))
    if not stays and decoding_since_ns >= 0 and len(steps):
        stays.append((steps.position_at(decoding_since_ns) + 1, steps.end - 1))
    return RequestSteps(np.sort(prefill).astype(np.int64), tuple(stays))
