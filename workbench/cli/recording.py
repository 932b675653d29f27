"""A record that may break off while the run goes on, as on a full disk."""

from __future__ import annotations

import math
from collections.abc import Callable

import typer

from engine.core.events import Segment
from workbench.record.errors import RunRecordError
from workbench.record.run_record import JOURNAL, RunWriter
from workbench.record.segment_buffer import SegmentBuffer
from workbench.running.execution import KEPT_EVERY_S, Ended


class Recording:
    """Writes one run as long as that works; the first failure is said on stderr and ends it.

    Attributes:
        writer: of the record.
        broke_off: whether something could not be written.
        add: the sink of segments.
    """

    def __init__(self, writer: RunWriter) -> None:
        self.writer = writer
        self.broke_off = False
        # What an engine measured cannot be computed again: a killed run keeps all but the last.
        seconds = KEPT_EVERY_S if writer.header.kind == "engine" else math.inf
        self._buffer = SegmentBuffer(self._write_segment, seconds=seconds)
        self.add = self._buffer.add

    def close(self, ended: Ended) -> None:
        """Write what is left, and how the run ended."""
        self._buffer.flush()
        self._attempt(lambda: self._end(ended), "the result is not recorded")

    def _write_segment(self, segment: Segment) -> None:
        self._attempt(
            lambda: self.writer.write_segment(segment), "the run goes on without recording"
        )

    def _end(self, ended: Ended) -> None:
        writer = self.writer
        if ended.journals and writer.header.detail != "none":
            journals = {str(i): journal.to_array() for i, journal in enumerate(ended.journals)}
            writer.add_arrays(JOURNAL, journals)
        if ended.failure is not None or ended.summary is None:
            writer.failed(ended.stopped_early or "", ended.summary)
        elif ended.stopped_early is None:
            writer.finish(ended.summary)
        else:
            writer.interrupted(ended.summary, ended.stopped_early)

    def _attempt(self, write: Callable[[], None], otherwise: str) -> None:
        if self.broke_off:
            return
        try:
            write()
        except RunRecordError as error:
            self.broke_off = True
            typer.echo(f"error: {error}\n{otherwise}: {self.writer.path} has failed", err=True)
