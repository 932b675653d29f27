"""Moves KV in and out of leased pages: in time, in part, late, twice, never.

The seam for KV transfers: whatever hands KV from replica to replica reports to a scheduler through
`Scheduler.transfer_done`, as these links do, and its faults are drawn here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from engine.core.enums import TransferStatus
from engine.core.plan import Transfer, TransferDirection
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from workbench.fuzz.device import GARBAGE, DeviceError, FakeDevice
from workbench.fuzz.draws import draw
from workbench.fuzz.fake_model import Ask, Story

_FATES: Final = (TransferStatus.OK, TransferStatus.OK, TransferStatus.FAILED, None)


@dataclass
class Trip:
    """A KV transfer under way.

    Attributes:
        status: how it ends; None: it is lost, and its end is told after its deadline.
        notices: how often its end will be told.
    """

    transfer: Transfer
    ask: Ask
    status: TransferStatus | None
    notices: int
    told: bool = False


@dataclass
class FakeLinks:
    """The links of one replica.

    Attributes:
        seed: of the fates of transfers.
        faults: whether any goes wrong.
        trips: transfers whose end has not been told as often as it will be.
        marks: what has happened at least once.
    """

    device: FakeDevice
    seed: int
    faults: bool
    trips: list[Trip] = field(default_factory=list)
    marks: set[str] = field(default_factory=set)

    def start(self, transfer: Transfer, ask: Ask) -> None:
        """A plan asks for a transfer."""
        fate = draw(self.seed, transfer.request_id, transfer.transfer_id)
        status = _FATES[fate & 3] if self.faults else TransferStatus.OK
        self.trips.append(Trip(transfer, ask, status, 2 if fate >> 2 & 7 < 3 else 1))

    def scribble(self, now: int) -> None:
        """Data of transfers under way arrive in part."""
        for trip in self.trips:
            transfer = trip.transfer
            alive = trip.status is not None and not trip.told and now < transfer.deadline_ns
            if alive and transfer.direction == TransferDirection.RECEIVE:
                size = len(transfer.pages) * self.device.page_size
                self.device.write(transfer.pages, 0, [GARBAGE] * size)
                self.marks.add("transfer in part")

    def finish_one(self, scheduler: Scheduler, now: int, choice: int) -> Request | None:
        """Tell the end of one transfer, the one that `choice` falls on, if it is due.

        Raises:
            DeviceError: its lease ended too early, or the pages held something else.
        """
        trip = self.trips[choice % len(self.trips)]
        transfer, status = trip.transfer, trip.status
        late = now >= transfer.deadline_ns
        if status is None and not late:
            return None
        self._mark(trip, late)
        if not trip.told:
            leased = transfer.transfer_id in scheduler.kv.pool.leases()
            if not (leased or late):
                raise DeviceError(f"the lease of transfer {transfer.transfer_id} ended too early")
            if leased and status != TransferStatus.FAILED:
                self._move(trip)
        trip.told = True
        trip.notices -= 1
        if trip.notices <= 0:
            self.trips.remove(trip)
        status = TransferStatus.OK if status is None else status
        return scheduler.transfer_done(transfer.transfer_id, status, now)

    def _mark(self, trip: Trip, late: bool) -> None:
        if trip.told:
            self.marks.add("transfer told twice")
        elif late:
            self.marks.add("transfer told late")
        elif trip.status == TransferStatus.FAILED:
            self.marks.add("transfer failed")

    def _move(self, trip: Trip) -> None:
        transfer, states = trip.transfer, Story(trip.ask).states
        if transfer.direction == TransferDirection.SEND:
            self.device.expect(transfer.pages, states[1:], f"transfer {transfer.transfer_id}")
        else:
            self.device.write(transfer.pages, 0, states[1:])
