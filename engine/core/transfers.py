"""KV transfers between replicas: which are open, and which page leases they hold."""

from __future__ import annotations

from engine.core.page_pool import PagePool
from engine.core.plan import Transfer, TransferDirection
from engine.core.request import Request


class TransferDesk:
    """Opens transfers with a lease on their pages, closes them once, expires the late ones.

    Attributes:
        pending: open transfers by id.
    """

    def __init__(self, pool: PagePool, timeout_ns: int) -> None:
        self._pool = pool
        self._timeout_ns = timeout_ns
        self.pending: dict[int, Transfer] = {}
        self._next_id = 0

    def open(self, request: Request, direction: TransferDirection, now: int) -> Transfer:
        """Start a transfer of all pages of a request."""
        deadline = now + self._timeout_ns
        transfer = Transfer(
            self._next_id,
            request.request_id,
            direction,
            tuple(request.pages),
            request.epoch,
            deadline,
        )
        self._next_id += 1
        self._pool.lease(transfer.transfer_id, transfer.pages, transfer.epoch, deadline)
        self.pending[transfer.transfer_id] = transfer
        return transfer

    def close(self, transfer_id: int) -> Transfer | None:
        """End a transfer and its lease; None if it is unknown, closed or expired already."""
        transfer = self.pending.pop(transfer_id, None)
        if transfer is not None:
            self._pool.end_lease(transfer_id)
        return transfer

    def expired(self, now: int) -> list[int]:
        """Ids of open transfers whose deadline has passed."""
        return [t.transfer_id for t in self.pending.values() if t.deadline_ns <= now]

    def next_deadline(self) -> int | None:
        """The earliest deadline, or None."""
        return min((t.deadline_ns for t in self.pending.values()), default=None)
