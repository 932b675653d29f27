"""KV transfers between replicas: which are open, and which page leases they hold."""

from __future__ import annotations

from engine.core.kv_memory import KvMemory
from engine.core.plan import Transfer, TransferDirection
from engine.core.radix_node import RadixNode
from engine.core.request import Request


class TransferDesk:
    """Opens transfers with a lease on their pages, closes them once, expires the late ones.

    A transfer also locks the cached part of its prefix: whatever becomes of the request, evicting a
    page that is still being read would not make it free.

    Attributes:
        pending: open transfers by id.
        locked: the cached prefix that each of them keeps.
    """

    def __init__(self, kv: KvMemory, timeout_ns: int) -> None:
        self._kv = kv
        self._timeout_ns = timeout_ns
        self.pending: dict[int, Transfer] = {}
        self.locked: dict[int, RadixNode] = {}
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
        self._kv.pool.lease(transfer.transfer_id, transfer.pages, transfer.epoch, deadline)
        if request.node is not None and self._kv.cache is not None:
            self._kv.cache.lock(request.node)
            self.locked[transfer.transfer_id] = request.node
        self.pending[transfer.transfer_id] = transfer
        return transfer

    def close(self, transfer_id: int) -> Transfer | None:
        """End a transfer and its lease; None if it is unknown, closed or expired already."""
        transfer = self.pending.pop(transfer_id, None)
        if transfer is not None:
            self._kv.pool.end_lease(transfer_id)
            node = self.locked.pop(transfer_id, None)
            if node is not None and self._kv.cache is not None:
                self._kv.cache.unlock(node)
        return transfer

    def expired(self, now: int) -> list[int]:
        """Ids of open transfers whose deadline has passed."""
        return [t.transfer_id for t in self.pending.values() if t.deadline_ns <= now]

    def next_deadline(self) -> int | None:
        """The earliest deadline, or None."""
        return min((t.deadline_ns for t in self.pending.values()), default=None)
