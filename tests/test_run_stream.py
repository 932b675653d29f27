"""The stream form of a run: frames through a pipe."""

from __future__ import annotations

import io
import os
import struct
import threading
from typing import Any

import msgspec
import pytest
from table_builders import Played, Server, make_header, play, poisson
from test_run_record import assert_same_tables, halves

from engine.core.events import TABLES, Detail, concatenate, recorded_tables
from workbench.record.errors import RunRecordError
from workbench.record.stream import (
    Frame,
    FrameWriter,
    HeaderFrame,
    MarkFrame,
    SegmentFrame,
    SummaryFrame,
    read_frames,
)


@pytest.fixture
def played() -> Played:
    return play(poisson(40, 400, output=5), Server(num_pages=16))


def stream_of(played: Played, detail: str = "pages") -> bytes:
    """Header, two segments with a mark between them, summary."""
    file = io.BytesIO()
    writer = FrameWriter(file, played.header(detail=detail))
    first, second = halves(played.tables)
    writer.write_segment(first)
    writer.mark(MarkFrame(t_ns=5, severity="info", code="half", text="half of it", step=3))
    writer.write_segment(second)
    writer.summary({"completed": 40})
    return file.getvalue()


def frames(data: bytes) -> list[Frame]:
    return list(read_frames(io.BytesIO(data)))


@pytest.mark.parametrize("detail", list(Detail))
def test_frames_come_back_as_they_went(played: Played, detail: Detail) -> None:
    """Header, segments (tables of the detail, dtypes of TABLES), marks and summary survive."""
    got = frames(stream_of(played, detail.name.lower()))
    assert got[0] == HeaderFrame(played.header(detail=detail.name.lower()))
    assert got[2] == MarkFrame(t_ns=5, severity="info", code="half", text="half of it", step=3)
    assert got[4] == SummaryFrame("complete", {"completed": 40})
    segments = [frame.segment() for frame in got if isinstance(frame, SegmentFrame)]
    kept = recorded_tables(detail)
    assert set().union(*segments) <= set(kept)
    joined = concatenate(segments, tuple(TABLES))
    assert_same_tables(joined, {name: played.tables[name] for name in kept})
    assert all(not len(joined[name]["replica"]) for name in TABLES if name not in kept)


def test_frames_pass_through_a_pipe(played: Played) -> None:
    """A reader at the other end of a pipe, which gets bytes in pieces, sees the same frames."""
    data = stream_of(played) * 1
    reading, writing = os.pipe()

    def send() -> None:
        with os.fdopen(writing, "wb", buffering=0) as file:
            for at in range(0, len(data), 777):
                file.write(data[at : at + 777])

    sender = threading.Thread(target=send)
    sender.start()
    with os.fdopen(reading, "rb", buffering=0) as file:
        got = list(read_frames(file))
    sender.join()
    assert got == frames(data)


def test_a_stream_cut_anywhere_is_an_error_or_lacks_its_summary(played: Played) -> None:
    """Inside a frame the cut is an error; between frames the summary is missing."""
    data = stream_of(played)
    whole, borders = frames(data), [0]
    while borders[-1] < len(data):
        (length,) = struct.unpack_from("<I", data, borders[-1])
        borders.append(borders[-1] + 4 + length)
    assert isinstance(whole[-1], SummaryFrame)
    for at in sorted({*range(0, len(data), 501), *borders}):
        if at in borders:
            assert frames(data[:at]) == whole[: borders.index(at)]
            continue
        with pytest.raises(RunRecordError, match="ends inside a frame"):
            frames(data[:at])


def test_unknown_frames_are_skipped(played: Played) -> None:
    """A reader follows a stream in which a later version adds kinds of frames."""
    data = stream_of(played)
    extra = msgspec.msgpack.encode({"frame": "kernel", "name": "attention"})
    (length,) = struct.unpack("<I", data[:4])
    with_extra = data[: 4 + length] + struct.pack("<I", len(extra)) + extra + data[4 + length :]
    assert frames(with_extra) == frames(data)


def test_what_is_no_stream_is_said(played: Played) -> None:
    """Text, a stream without its header and another format each get their own words."""
    with pytest.raises(RunRecordError, match="no run stream"):
        frames(b"============ Serving Benchmark Result ============")
    data = stream_of(played)
    (length,) = struct.unpack("<I", data[:4])
    with pytest.raises(RunRecordError, match="does not start with a header"):
        frames(data[4 + length :])
    newer = msgspec.msgpack.encode({"frame": "header", "header": {"format": 99}})
    with pytest.raises(RunRecordError, match=r"format 99 .* update the workbench"):
        frames(struct.pack("<I", len(newer)) + newer)
    older = msgspec.msgpack.encode({"frame": "header", "header": {"format": 1}})
    with pytest.raises(RunRecordError, match=r"format 1 .* update the sender"):
        frames(struct.pack("<I", len(older)) + older)
    broken = msgspec.msgpack.encode({"frame": "header", "header": {"format": 2}})
    with pytest.raises(RunRecordError, match="header frame of the stream is damaged"):
        frames(struct.pack("<I", len(broken)) + broken)


def test_an_empty_stream_has_no_frames() -> None:
    """Nothing written, nothing read."""
    assert frames(b"") == []


def test_a_file_that_takes_little_at_a_time_gets_it_all(played: Played) -> None:
    """Without a buffer a write may end early, when a signal comes."""

    class Narrow(io.RawIOBase):
        def __init__(self) -> None:
            self.taken = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            part = bytes(data[:7])
            self.taken += part
            return len(part)

    file = Narrow()
    writer = FrameWriter(file, played.header())  # type: ignore[arg-type]
    writer.write_segment(played.tables)
    writer.summary({"completed": 40})
    got = frames(bytes(file.taken))
    assert got[0] == HeaderFrame(played.header())
    assert got[-1] == SummaryFrame("complete", {"completed": 40})


def test_every_frame_is_flushed() -> None:
    """A viewer must not wait for a buffer to fill."""

    class Counting(io.BytesIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed = len(self.getvalue())

    file = Counting()
    writer = FrameWriter(file, make_header(Server()))
    assert file.flushed == len(file.getvalue()) > 0
    writer.summary({})
    assert file.flushed == len(file.getvalue())
