"""No trace file, however damaged, makes a reader raise anything but TraceError."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_files import FIXTURES, NAMES

from workbench.workload.trace_errors import TraceError
from workbench.workload.traces import Trace, read_trace

FORMATS = st.sampled_from(["auto", "mooncake", "azure", "burstgpt"])


def _read_or_refuse(path: Path, trace_format: str, block_size: int) -> None:
    try:
        trace = read_trace(path, trace_format=trace_format, block_size=block_size)
    except TraceError as refusal:
        message = str(refusal)
    else:
        _assert_usable(trace)
        return
    assert str(path) in message
    assert len(message) < 10_000


def _assert_usable(trace: Trace) -> None:
    assert len(trace) >= 1
    assert trace.prompt_tokens.min() >= 1
    assert trace.output_tokens.min() >= 1
    assert trace.arrival_ns[0] == 0
    assert (np.diff(trace.arrival_ns) >= 0).all()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), FORMATS, st.integers(1, 600))
def test_arbitrary_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, trace_format: str, block_size: int
) -> None:
    """No content makes a reader raise anything but TraceError."""
    path = tmp_path_factory.getbasetemp() / "arbitrary"
    path.write_bytes(content)
    _read_or_refuse(path, trace_format, block_size)


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    content = bytearray((FIXTURES / draw(st.sampled_from(NAMES))).read_bytes())
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 12)))
        tokens = st.sampled_from(
            [b"", b"\n", b",", b'"', b"-", b"0", b"99999999999", b"[", b"{", b"e9"]
        )
        content[start:stop] = draw(st.one_of(st.binary(max_size=8), tokens))
    return (
        gzip.compress(content)[: -draw(st.integers(1, 9))]
        if draw(st.booleans())
        else bytes(content)
    )


@settings(max_examples=300, deadline=None)
@given(_mutated(), FORMATS)
def test_mutated_traces_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, trace_format: str
) -> None:
    """Nor does a trace with any damage."""
    path = tmp_path_factory.getbasetemp() / "mutated"
    path.write_bytes(content)
    _read_or_refuse(path, trace_format, 512)
