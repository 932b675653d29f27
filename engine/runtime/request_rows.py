"""Which row of the page table each request holds, and which of its pages the device knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.core.enums import RequestStatus
from engine.core.request import Request


@dataclass(slots=True)
class Row:
    """One request's row.

    Attributes:
        index: row of the page table.
        request: whose it is.
        epoch: of the request when its pages were written; another epoch has other pages.
        pages: how many of its pages the device knows.
    """

    index: int
    request: Request
    epoch: int
    pages: int = 0


class RequestRows:
    """Hands out rows, and takes back those of requests that run no longer.

    Everything happens on one stream, so a row may be reused while a step that reads it for its
    former owner is still in flight: the new owner's pages are written behind that step.

    Args:
        count: rows; `max_running_requests` for each plan in flight are enough, because besides the
            running requests only those need theirs whose last token such a plan brings.
        assigned: called with (row, request id) when a request gets a row.
    """

    def __init__(self, count: int, assigned: Callable[[int, int], None]) -> None:
        self._free = list(range(count - 1, -1, -1))
        self._rows: dict[int, Row] = {}
        self._assigned = assigned

    def of(self, request: Request) -> Row:
        """The row of a request in a plan; it gets one if it has none."""
        row = self._rows.get(request.request_id)
        if row is not None and row.request is request:
            if row.epoch != request.epoch:
                row.epoch, row.pages = request.epoch, 0
            return row
        if row is not None:  # an earlier request of the same id
            self._free.append(row.index)
        elif not self._free:
            self._sweep()
        index = self._free.pop()
        self._rows[request.request_id] = row = Row(index, request, request.epoch)
        self._assigned(index, request.request_id)
        return row

    def _sweep(self) -> None:
        """Take back the rows of requests that wait or have ended."""
        gone = (RequestStatus.WAITING, RequestStatus.FINISHED)
        for request_id, row in list(self._rows.items()):
            if row.request.status in gone:
                self._free.append(row.index)
                del self._rows[request_id]
