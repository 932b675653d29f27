"""The decoding requests of a replica, kept as sums so that a decode step touches none of them.

Every member takes part in every decode *iteration*, a step that decodes. A member's KV length after
iteration i is `offset + i`, so the batch needs only the number of members and the sum of their
offsets. What happens at a known iteration (a member needs its next page, a member reaches its
max_tokens) waits in a calendar keyed by iteration. A step costs O(pages to allocate + finishes).
"""

from __future__ import annotations

import heapq
from typing import Final

from engine.core.request import Request

_NOBODY: Final[dict[int, Request]] = {}


class DecodeBatch:
    """Members, their KV lengths as sums, and calendars of page needs and length limits.

    Attributes:
        iteration: the last iteration planned.
        members: requests by id, in the order of joining, which is the order of batch slots.
        version: changes with membership.
        crossings: members by the iteration for which they need their next page.
        limits: heap of (iteration, request id, epoch) at which members reach max_tokens; entries of
            members that left are stale. The heap's first entry says when to look.
    """

    def __init__(self, page_size: int) -> None:
        self.iteration = 0
        self.members: dict[int, Request] = {}
        self.version = 0
        self._page_size = page_size
        self._offset_sum = 0
        self._limit_sum = 0
        self.crossings: dict[int, dict[int, Request]] = {}
        self.limits: list[tuple[int, int, int]] = []
        self._longest: list[tuple[int, int, int]] = []
        self._snapshot: list[tuple[Request, int]] = []
        self._snapshot_version = 0

    def __len__(self) -> int:
        return len(self.members)

    def snapshot(self) -> list[tuple[Request, int]]:
        """(request, epoch) of each member in slot order; made anew only when membership changed."""
        if self._snapshot_version != self.version:
            self._snapshot_version = self.version
            self._snapshot = [(request, request.epoch) for request in self.members.values()]
        return self._snapshot

    def context_tokens(self, iteration: int) -> int:
        """Sum of the members' KV lengths after `iteration`, its own tokens included."""
        return self._offset_sum + len(self.members) * iteration

    def max_context_tokens(self, iteration: int) -> int:
        """The longest member's KV length after `iteration`; 0 for an empty batch."""
        longest = self._longest
        while longest and self._stale(longest[0]):
            heapq.heappop(longest)
        return iteration - longest[0][0] if longest else 0

    def sums(self, iteration: int) -> tuple[int, int, int]:
        """Members, `context_tokens`, `max_context_tokens` after `iteration`, of a filled batch."""
        longest, members = self._longest, self.members
        top = longest[0]
        while (request := members.get(top[1])) is None or request.epoch != top[2]:
            heapq.heappop(longest)
            top = longest[0]
        size = len(members)
        return size, self._offset_sum + size * iteration, iteration - top[0]

    def remaining_tokens(self) -> int:
        """Sum over members of the tokens that max_tokens still allows beyond those planned."""
        return self._limit_sum - len(self.members) * self.iteration

    def join(self, request: Request) -> None:
        """Add a request from the next iteration on; its `pages` cover its `scheduled_tokens`."""
        request.offset = request.scheduled_tokens - self.iteration
        request.span_first = self.iteration + 1
        request.span_last = -1
        self.members[request.request_id] = request
        self.version += 1
        self._offset_sum += request.offset
        limit = self.limit_of(request)
        self._limit_sum += limit
        self._push(self.limits, (limit, request.request_id, request.epoch))
        self._push(self._longest, (-request.offset, request.request_id, request.epoch))
        self._schedule_crossing(request)

    def leave(self, request: Request) -> None:
        """Remove a member; the last iteration planned was its last."""
        del self.members[request.request_id]
        self.version += 1
        self._offset_sum -= request.offset
        self._limit_sum -= self.limit_of(request)
        request.span_last = self.iteration
        crossing = self.crossing_of(request)
        bucket = self.crossings[crossing]
        del bucket[request.request_id]
        if not bucket:
            del self.crossings[crossing]

    def limit_of(self, request: Request) -> int:
        """The iteration that gives a member its last allowed token."""
        return request.max_kv_tokens - request.offset

    def crossing_of(self, request: Request) -> int:
        """The iteration for which a member needs its next page."""
        return len(request.pages) * self._page_size - request.offset + 1

    def crossing(self, iteration: int) -> dict[int, Request]:
        """Members that need one more page in `iteration`."""
        return self.crossings.get(iteration, _NOBODY)

    def page_given(self, iteration: int) -> None:
        """Every member of `crossing(iteration)` has got one page, so all need the next together."""
        bucket = self.crossings.pop(iteration)
        later = self.crossings.setdefault(iteration + self._page_size, bucket)
        if later is not bucket:
            later.update(bucket)

    def pages_within(self, count: int) -> list[int]:
        """Pages needed in each of the next `count` iterations."""
        get = self.crossings.get
        first = self.iteration + 1
        return [len(get(i, ())) for i in range(first, first + count)]

    def next_limit(self) -> int | None:
        """The earliest iteration at which a member reaches max_tokens."""
        limits = self.limits
        while limits and self._stale(limits[0]):
            heapq.heappop(limits)
        return limits[0][0] if limits else None

    def pop_finished(self) -> list[Request]:
        """Members whose last allowed iteration has been planned leave and are returned."""
        finished: list[Request] = []
        limits = self.limits
        while limits and limits[0][0] <= self.iteration:
            entry = heapq.heappop(limits)
            if not self._stale(entry):
                request = self.members[entry[1]]
                self.leave(request)
                finished.append(request)
        return finished

    def _schedule_crossing(self, request: Request) -> None:
        self.crossings.setdefault(self.crossing_of(request), {})[request.request_id] = request

    def _push(self, heap: list[tuple[int, int, int]], entry: tuple[int, int, int]) -> None:
        heapq.heappush(heap, entry)
        if len(heap) > 4 * len(self.members) + 1024:
            heap[:] = [entry for entry in heap if not self._stale(entry)]
            heapq.heapify(heap)

    def _stale(self, entry: tuple[int, int, int]) -> bool:
        request = self.members.get(entry[1])
        return request is None or request.epoch != entry[2]
