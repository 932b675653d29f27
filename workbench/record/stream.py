"""A run as a stream of frames, for a pipe: header, segments and marks, then a summary.

A frame is a little-endian uint32 length and so many bytes of MessagePack. `docs/run_record.md`
gives the fields. Frames of a kind that this reader does not know are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, Literal

import msgspec
import numpy as np

from engine.core.events import TABLES, Columns, Detail, Segment, recorded_tables
from workbench.record.columns import narrow_segment, widen
from workbench.record.errors import RunRecordError
from workbench.record.header import FORMAT_VERSION, RunHeader, Status

_LENGTH: Final = struct.Struct("<I")
_MAX_FRAME_BYTES: Final = 1 << 29  # any four letters of text read as a length are more

RECORDED_IN: Final = "recorded_in"  # code of the mark whose text is the directory of the record

WireColumns = dict[str, tuple[str, bytes]]  # column -> numpy dtype string, raw little-endian bytes


class HeaderFrame(msgspec.Struct, frozen=True, tag="header", tag_field="frame"):
    """First frame of every stream."""

    header: RunHeader


class SegmentFrame(msgspec.Struct, frozen=True, tag="segment", tag_field="frame"):
    """Rows of some tables, as they lie on the wire; `segment()` gives the arrays."""

    tables: dict[str, WireColumns]

    @classmethod
    def of(cls, segment: Segment) -> SegmentFrame:
        return cls({name: _to_wire(columns) for name, columns in segment.items()})

    def segment(self) -> Segment:
        """The tables that this code knows, with the dtypes of `engine.core.events.TABLES`."""
        return {
            name: _from_wire(name, columns)
            for name, columns in self.tables.items()
            if name in TABLES
        }


class MarkFrame(msgspec.Struct, frozen=True, kw_only=True, tag="mark", tag_field="frame"):
    """Something worth a person's look at a moment of the run."""

    t_ns: int
    severity: Literal["info", "warning", "error"]
    code: str
    text: str
    request_id: int | None = None
    replica: int | None = None
    step: int | None = None


class SummaryFrame(msgspec.Struct, frozen=True, tag="summary", tag_field="frame"):
    """Last frame of a run that ended by itself; a stream without it was cut off."""

    status: Status
    summary: dict[str, Any]


Frame = HeaderFrame | SegmentFrame | MarkFrame | SummaryFrame


class _AnyFrame(msgspec.Struct):
    frame: str


_KINDS: Final = frozenset({"header", "segment", "mark", "summary"})


class FrameWriter:
    """Writes frames to a binary file object and flushes each; `write_segment` is an EventLog sink.

    The first thing written is the header; its `detail` decides which tables go out. Errors of the
    file object (a broken pipe, say) pass through.
    """

    def __init__(self, file: BinaryIO, header: RunHeader) -> None:
        self._file = file
        self._encoder = msgspec.msgpack.Encoder()
        self._tables = recorded_tables(Detail[header.detail.upper()])
        self._write(HeaderFrame(header))

    def write_segment(self, segment: Segment) -> None:
        """Send the tables of this run's detail, narrowed as on disk."""
        kept = narrow_segment(segment, self._tables)
        if kept:
            self._write(SegmentFrame.of(kept))

    def mark(self, mark: MarkFrame) -> None:
        """Send a mark."""
        self._write(mark)

    def summary(self, summary: dict[str, Any], status: Status = "complete") -> None:
        """Send the last frame."""
        self._write(SummaryFrame(status, summary))

    def _write(self, frame: Frame) -> None:
        body = self._encoder.encode(frame)
        if len(body) > _MAX_FRAME_BYTES:
            raise RunRecordError(
                f"a frame of {len(body)} bytes exceeds {_MAX_FRAME_BYTES}; use smaller segments"
            )
        left = memoryview(_LENGTH.pack(len(body)) + body)
        while left:  # an unbuffered file may take a part only, when a signal comes
            left = left[self._file.write(left) :]
        self._file.flush()


def read_frames(file: BinaryIO) -> Iterator[Frame]:
    """Yield the frames of a stream until it ends.

    Raises:
        RunRecordError: it is no such stream, is of a newer format, or ends inside a frame.
    """
    decoder = msgspec.msgpack.Decoder(Frame)
    first = True
    while (body := _read_frame(file)) is not None:
        kind = _kind_of(body)
        if first and kind != "header":
            raise RunRecordError("this is no run stream: it does not start with a header frame")
        if first:
            _check_format(body)
        first = False
        if kind not in _KINDS:
            continue
        try:
            yield decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise RunRecordError(f"a {kind} frame of the stream is damaged: {error}") from error


def _kind_of(body: bytes) -> str:
    try:
        return msgspec.msgpack.decode(body, type=_AnyFrame).frame
    except msgspec.MsgspecError as error:
        raise RunRecordError(f"this is no run stream: {error}") from error


def _check_format(body: bytes) -> None:
    header = msgspec.msgpack.decode(body).get("header")
    version = header.get("format") if isinstance(header, dict) else None
    if isinstance(version, int) and version != FORMAT_VERSION:
        older = "workbench" if version > FORMAT_VERSION else "sender"
        raise RunRecordError(
            f"the stream has format {version} and this workbench reads {FORMAT_VERSION}; "
            f"update the {older}"
        )


def _read_frame(file: BinaryIO) -> bytes | None:
    """The body of the next frame, or None at a clean end."""
    prefix = _read_up_to(file, _LENGTH.size)
    if not prefix:
        return None
    if len(prefix) == _LENGTH.size:
        (length,) = _LENGTH.unpack(prefix)
        if length > _MAX_FRAME_BYTES:
            raise RunRecordError(f"this is no run stream: a frame of {length} bytes")
        body = _read_up_to(file, length)
        if len(body) == length:
            return body
    raise RunRecordError("the stream ends inside a frame: its writer was cut off")


def _read_up_to(file: BinaryIO, size: int) -> bytes:
    """`size` bytes, fewer only at the end; a pipe may give them in pieces."""
    pieces: list[bytes] = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _to_wire(columns: Columns) -> WireColumns:
    little = {
        name: column.astype(column.dtype.newbyteorder("<"), copy=False)
        for name, column in columns.items()
    }
    return {name: (column.dtype.str, column.tobytes()) for name, column in little.items()}


def _from_wire(table: str, columns: WireColumns) -> Columns:
    known = {name: wire for name, wire in columns.items() if name in TABLES[table]}
    return widen(table, {name: np.frombuffer(raw, dtype) for name, (dtype, raw) in known.items()})
