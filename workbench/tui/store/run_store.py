"""One run in memory, growing or whole: every view reads it, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.core.events import TABLES, Columns, Detail, Segment, recorded_tables
from workbench.record.columns import rows
from workbench.record.errors import RunRecordError
from workbench.record.header import RunHeader, Status
from workbench.record.run_record import RunReader
from workbench.record.stream import Frame, HeaderFrame, MarkFrame, SegmentFrame, SummaryFrame
from workbench.tui.store.growing_table import GrowingTable
from workbench.tui.store.replica_log import ReplicaLog
from workbench.tui.store.request_book import RequestBook
from workbench.tui.store.step_log import StepLog

_RING_SLACK: Final = 1.25  # a ring drops steps in portions of a quarter of itself
_OF_REPLICAS: Final = ("steps", "items", "decode_spans", "lifecycle", "memory", "radix")


class RunStore:
    """Holds a run; `append` adds to it, whether rows come from a pipe or from a directory.

    It is a `workbench.analysis.source.RunTables`: explanations and comparisons take it as it is,
    except that it gives no rows of `memory` and `radix`, which it keeps folded.

    Args:
        header: of the run.
        path: where the run is recorded, if that is known.
        ring_steps: keep only about so many last steps of each replica; None keeps all. Requests
            are kept in any case: they take about 100 bytes each.

    Attributes:
        status: how far the run is.
        summary: its metrics, once it has ended.
        marks: what the run wanted a person to see, in order.
        requests: all requests.
        replicas: one log per replica of the header.
    """

    def __init__(
        self, header: RunHeader, path: Path | None = None, ring_steps: int | None = None
    ) -> None:
        self.header = header
        self.path = path
        self.status: Status = header.status
        self.summary: dict[str, Any] | None = None
        self.marks: list[MarkFrame] = []
        self.requests = RequestBook()
        self.replicas = [ReplicaLog(i, facts) for i, facts in enumerate(header.replicas)]
        self._ring_steps = ring_steps
        self._nowhere = ReplicaLog(-1, header.replicas[0])  # of requests that reached no replica

    @classmethod
    def open(cls, path: Path) -> RunStore:
        """Read a recorded run, whole or not.

        Raises:
            RunRecordError: it is no run, or damaged.
        """
        reader = RunReader(path)
        store = cls(reader.header, path)
        store.append({name: reader.table(name) for name in TABLES})
        for replica in store.replicas:
            replica.kv.fold()
        if reader.header.status == "running":
            store.status = "interrupted"  # killed, or fed by somebody else: here nothing comes
        else:
            try:
                store.summary = reader.summary
            except RunRecordError:
                store.summary = None  # a failed run may have none; its status says so
        return store

    @classmethod
    def from_frames(cls, frames: Iterable[Frame], ring_steps: int | None = None) -> RunStore:
        """A store of a whole stream of frames, of which the first is the header."""
        iterator: Iterator[Frame] = iter(frames)
        first = next(iterator, None)
        if not isinstance(first, HeaderFrame):
            raise RunRecordError("this is no run stream: it does not start with a header frame")
        store = cls(first.header, ring_steps=ring_steps)
        for frame in iterator:
            store.take(frame)
        return store

    def take(self, frame: Frame | Segment) -> None:
        """Add what a frame says, or a segment already decoded."""
        if isinstance(frame, SegmentFrame):
            self.append(frame.segment())
        elif isinstance(frame, MarkFrame):
            self.marks.append(frame)
        elif isinstance(frame, SummaryFrame):
            self.end(frame.status, frame.summary)
        elif isinstance(frame, HeaderFrame):
            self.header = frame.header
        else:
            self.append(frame)

    def append(self, segment: Segment) -> None:
        """Add the rows of a segment."""
        if "lifecycle" in segment:
            self.requests.add_events(segment["lifecycle"])
        if rows(segment.get("requests", {})):
            self.requests.add_finished(segment["requests"])
        for replica in (self._nowhere, *self.replicas):
            part = {
                name: _of_replica(segment[name], replica.number)
                for name in _OF_REPLICAS
                if name in segment
            }
            replica.append({name: columns for name, columns in part.items() if rows(columns)})
        if self._ring_steps is not None:
            self._drop(self._ring_steps)

    def end(
        self, status: Status, summary: dict[str, Any] | None, reason: str | None = None
    ) -> None:
        """Say that the run has ended, and how."""
        self.status, self.summary = status, summary
        self.header = msgspec.structs.replace(self.header, status=status, status_reason=reason)

    def records(self, table: str) -> bool:
        """Whether the detail of this run includes a table."""
        return table in recorded_tables(Detail[self.header.detail.upper()])

    def table(self, name: str) -> Columns:
        """As `RunTables.table`; what a ring has dropped is not in it."""
        if name == "requests":
            return self.requests.table()
        every = (self._nowhere, *self.replicas)
        logs: dict[str, list[StepLog] | list[GrowingTable]] = {
            "steps": [replica.steps for replica in self.replicas],
            "lifecycle": [replica.lifecycle for replica in every],
            "decode_spans": [replica.spans for replica in every],
            "items": [replica.items for replica in every],
        }
        empty = {key: np.empty(0, dtype) for key, dtype in TABLES[name].items()}
        return {
            key: np.concatenate([empty[key], *(_column(log, key) for log in logs.get(name, ()))])
            for key in TABLES[name]
        }

    def items_of_request(self, request_id: int) -> Columns:
        """Rows of the table `items` of one request, in order of steps of each replica."""
        found = []
        for replica in self.replicas:
            here = np.flatnonzero(replica.items["request_id"] == request_id)
            found.append({name: replica.items[name][here] for name in TABLES["items"]})
        return {name: np.concatenate([part[name] for part in found]) for name in TABLES["items"]}

    @property
    def end_ns(self) -> int:
        """When the last step of any replica ended, in ns."""
        ends = [int(r.steps.column("end_ns")[-1]) for r in self.replicas if len(r.steps)]
        return max(ends, default=0)

    def _drop(self, ring_steps: int) -> None:
        for replica in self.replicas:
            if len(replica.steps) > ring_steps * _RING_SLACK:
                replica.drop_before(replica.steps.end - ring_steps)


def _of_replica(columns: Columns, number: int) -> Columns:
    here = columns["replica"] == number
    if here.all():
        return columns
    return {name: column[here] for name, column in columns.items()}


def _column(log: StepLog | GrowingTable, name: str) -> NDArray[Any]:
    return log.column(name) if isinstance(log, StepLog) else log[name]
