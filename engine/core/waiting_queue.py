"""Requests waiting for admission, in the order of the policy."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Literal

from engine.core.request import Request

Policy = Literal["fcfs", "lpm", "priority"]

LPM_WINDOW = 128  # longest-prefix ordering looks at this many of the oldest requests
MAX_BYPASS = 128  # after so many later admissions the oldest request goes first


class WaitingQueue:
    """A priority queue with removal by id.

    fcfs orders by arrival, priority by (priority, arrival). lpm takes the longest cached prefix
    among the `LPM_WINDOW` oldest, unless the oldest was bypassed `MAX_BYPASS` times.

    Attributes:
        live: (ticket, request) by request id; heap entries with another ticket are stale.
    """

    def __init__(self, policy: Policy, cached_prefix: Callable[[Request], int]) -> None:
        self._by_priority = policy == "priority"
        self._lpm = policy == "lpm"
        self._cached_prefix = cached_prefix
        self._heap: list[tuple[int, int, int, Request]] = []
        self.live: dict[int, tuple[int, Request]] = {}
        self._tickets = 0

    def __len__(self) -> int:
        return len(self.live)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, request in self.live.values())

    def push(self, request: Request) -> None:
        """Add a request; it keeps its place by arrival however often it comes back."""
        self._tickets += 1
        self.live[request.request_id] = (self._tickets, request)
        rank = -request.priority if self._by_priority else 0
        heapq.heappush(self._heap, (rank, request.sequence, self._tickets, request))

    def head(self) -> Request | None:
        """The request to admit next."""
        oldest = self._oldest()
        if oldest is None or not self._lpm or oldest.bypassed >= MAX_BYPASS:
            return oldest
        window = self._window()
        return max(window, key=lambda r: (self._cached_prefix(r), -r.sequence))

    def remove(self, request: Request) -> None:
        """Take out a request that was admitted or ended."""
        del self.live[request.request_id]

    def admitted(self, request: Request) -> None:
        """Take out an admitted request and remember whom it overtook."""
        if self._lpm:
            oldest = self._oldest()
            if oldest is not None and oldest is not request:
                oldest.bypassed += 1
        self.remove(request)

    def _oldest(self) -> Request | None:
        heap = self._heap
        while heap and self.live.get(heap[0][3].request_id, (0,))[0] != heap[0][2]:
            heapq.heappop(heap)
        return heap[0][3] if heap else None

    def _window(self) -> list[Request]:
        """The oldest live requests, oldest first."""
        taken: list[tuple[int, int, int, Request]] = []
        while len(taken) < LPM_WINDOW and self._oldest() is not None:
            taken.append(heapq.heappop(self._heap))
        for entry in taken:
            heapq.heappush(self._heap, entry)
        return [entry[3] for entry in taken]
