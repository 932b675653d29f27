"""Whatever comes from outside is read or refused in this project's own words, in bounded memory.

Scenarios and traces have tests of this kind of their own (`test_scenario_fuzz.py`,
`test_trace_fuzz.py`), case files of the fuzzer (`test_fuzz.py`) and model files
(`test_model_file_limits.py`) too. Here: run records, streams, journals and prompts.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from outside_values import DEEP, VALUES, bounded

from engine.core.errors import OutOfPagesError
from engine.core.journal import read_calls
from engine.runtime.prompts import parse_prompt
from workbench.record.errors import RunRecordError
from workbench.record.header import HeaderError, decode_header
from workbench.record.run_record import RunReader, _read_arrays
from workbench.record.stream import read_frames
from workbench.workload.trace_errors import TraceError
from workbench.workload.traces import read_trace

# ---- run records, streams, journals --------------------------------------------------------------


@settings(max_examples=300)
@given(content=st.binary(max_size=100) | VALUES.map(lambda v: json.dumps(v).encode()))
@example(content=DEEP.encode())
@example(content=b'{"format":1,"scenario":' + DEEP.encode())
def test_any_run_header_is_read_or_refused(content: bytes) -> None:
    bounded(lambda: decode_header(content), HeaderError)


def npz(arrays: dict[str, bytes]) -> bytes:
    """An archive whose members are these bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def npy(shape: str, dtype: str = "<i8") -> bytes:
    """An array that claims a shape and has eight bytes."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"\0" * 8


@pytest.mark.parametrize("shape", ["(1099511627776,)", "(1 << 62,)", "(-1,)", "(10**30,)", "()"])
@pytest.mark.parametrize("dtype", ["<i8", "O", "V4294967296"])
def test_an_array_that_claims_to_be_giant_is_refused(
    shape: str, dtype: str, tmp_path: Path
) -> None:
    """A few bytes in a segment never become gigabytes in memory."""
    path = tmp_path / "00000.npz"
    path.write_bytes(npz({"steps/step": npy(shape, dtype)}))
    bounded(lambda: _read_arrays(path, ("steps/step",)), RunRecordError)


@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 8))
def test_a_damaged_segment_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int, cut: int
) -> None:
    """Bytes are exchanged, put in and cut off."""
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    good = npz({"steps/step": npy("(1,)"), "steps/replica": npy("(1,)")})
    path.write_bytes(good[:at] + junk + good[at + cut :])
    bounded(lambda: _read_arrays(path, None), RunRecordError)


@pytest.mark.parametrize("content", [DEEP, "[1]", "nul", '{"a": 1'])
def test_a_damaged_summary_is_refused(content: str, tmp_path: Path) -> None:
    header = dict(
        format=1, name="x", kind="simulation", detail="none", seed=0, model="m", gpu="g",
        cost_model="c", replicas=[], load=dict(kind="poisson"),
    )  # fmt: skip
    (tmp_path / "header.json").write_text(json.dumps(header))
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(RunRecordError):
        _ = RunReader(tmp_path).summary


def test_a_giant_header_is_refused_unread(tmp_path: Path) -> None:
    """A file of a terabyte takes no terabyte of memory."""
    with (tmp_path / "header.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(
        RunRecordError, match=r"header\.json: it has 1,099,511,627,776 bytes, .* at most 67,108,864"
    ):
        RunReader(tmp_path)


@settings(max_examples=300)
@given(st.binary(max_size=120))
@example(struct.pack("<I", 2**32 - 1))
@example(struct.pack("<I", 1 << 29) + b"x")
@example(struct.pack("<I", 60_000) + b"\x91" * 60_000)
def test_any_stream_is_read_or_refused(content: bytes) -> None:
    """A length is believed only as far as bytes follow."""
    bounded(lambda: list(read_frames(io.BytesIO(content))), RunRecordError)


@settings(max_examples=300)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_any_journal_is_read_or_refused(values: list[int]) -> None:
    bounded(lambda: list(read_calls(np.array(values, np.int64))), ValueError)


# ---- traces and prompts --------------------------------------------------------------------------


def test_a_deeply_nested_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": ' + DEEP)
    bounded(lambda: read_trace(path, trace_format="mooncake"), TraceError)


@settings(max_examples=300)
@given(VALUES | st.lists(st.integers() | st.floats() | st.booleans(), max_size=5))
def test_any_prompt_is_parsed_or_refused(prompt: object) -> None:
    """Forms, not sizes: those are checked against the engine's limits."""
    bounded(lambda: parse_prompt(prompt), TypeError, ValueError)


def test_out_of_pages_is_not_a_parser_error() -> None:
    """What parsers may raise is no error of the scheduler."""
    assert not issubclass(OutOfPagesError, ValueError)
