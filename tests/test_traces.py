"""What the trace readers read: exact times, exact lengths."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_files import AZURE_HEADER, BURSTGPT_HEADER, FIXTURES, NAMES, refusal, written

from workbench.workload.lengths import MAX_TOKENS
from workbench.workload.trace_errors import TraceError
from workbench.workload.traces import Trace, read_trace

MILLISECOND, SECOND = 1_000_000, 1_000_000_000


def _assert_same(a: Trace, b: Trace) -> None:
    assert a.format == b.format
    assert a.skipped_rows == b.skipped_rows
    for name in ("arrival_ns", "prompt_tokens", "output_tokens", "hash_offsets", "hash_ids"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_azure_2023_times_are_exact_to_100_ns() -> None:
    """Seven decimals, CRLF and a missing last line feed lose nothing."""
    trace = read_trace(FIXTURES / "azure_2023.csv")
    assert trace.format == "azure"
    assert trace.arrival_ns.tolist() == [0, 52_000_100, 1_020_040_000, 5_140_684_000]
    assert trace.prompt_tokens.tolist() == [4808, 3180, 110, 7433]
    assert trace.output_tokens.tolist() == [10, 8, 27, 14]
    assert trace.lines.tolist() == [2, 3, 4, 5]
    assert trace.hash_ids is None
    assert trace.notes == ()


def test_azure_2024_offsets_and_whole_seconds_are_understood() -> None:
    """A time may lack its fraction, and its offset from UTC counts."""
    trace = read_trace(FIXTURES / "azure_2024.csv")
    assert trace.arrival_ns.tolist() == [0, 990_070_000, 990_071_000, 2_490_070_000]
    assert trace.notes == ()


def test_burstgpt_skips_and_counts_failed_requests() -> None:
    """Rows without response tokens never happened for the server, but are not hushed up."""
    trace = read_trace(FIXTURES / "burstgpt_v1.csv")
    assert trace.format == "burstgpt"
    assert trace.arrival_ns.tolist() == [0, 40 * SECOND, 113 * SECOND, 1995 * SECOND]
    assert trace.prompt_tokens.tolist() == [472, 1087, 417, 1360]
    assert trace.skipped_rows == 2
    assert trace.notes == ("2 rows without output tokens (failed requests) were skipped",)


def test_burstgpt_with_session_columns_is_found_by_column_name() -> None:
    """Further columns move the known ones; they are named as ignored."""
    trace = read_trace(FIXTURES / "burstgpt_v2.csv")
    assert trace.arrival_ns.tolist() == [0, 51_250 * MILLISECOND, 90_500 * MILLISECOND]
    assert trace.prompt_tokens.tolist() == [906, 36, 2100]
    assert trace.output_tokens.tolist() == [446, 29, 1]
    assert trace.lines.tolist() == [2, 3, 5]
    assert any("Session ID" in note for note in trace.notes)


def test_mooncake_rows_keep_their_hash_ids() -> None:
    """Times are ms, and each row owns its slice of the hash ids."""
    trace = read_trace(FIXTURES / "mooncake.jsonl")
    assert trace.format == "mooncake"
    assert (trace.arrival_ns // MILLISECOND).tolist() == [0, 0, 3052, 3053, 6001, 6001, 9100]
    assert trace.prompt_tokens.tolist() == [1300, 1100, 512, 1537, 40, 700, 2048]
    assert trace.hash_offsets is not None
    assert trace.hash_ids is not None
    first, last = trace.hash_offsets[3:5]
    assert trace.hash_ids[first:last].tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("name", NAMES)
def test_gzip_bom_crlf_and_blank_lines_change_nothing(name: str, tmp_path: Path) -> None:
    """The same rows come out whatever an editor or a download did to the file."""
    plain = read_trace(FIXTURES / name)
    text = (FIXTURES / name).read_bytes().replace(b"\r\n", b"\n").rstrip(b"\n")
    disguised = {
        "gz": gzip.compress(text),
        "bom": b"\xef\xbb\xbf" + text,
        "crlf": text.replace(b"\n", b"\r\n") + b"\r\n",
        "blanks": text.replace(b"\n", b"\n\n  \n") + b"\n\n\n",
        "gz_bom_crlf": gzip.compress(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n")),
    }
    for how, content in disguised.items():
        path = tmp_path / how
        path.write_bytes(content)
        _assert_same(read_trace(path), plain)


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    """A row is found in an editor by the number in the trace."""
    path = written(
        tmp_path, AZURE_HEADER, "", "2023-11-16 18:17:03,5,6", "  ", "2023-11-16 18:17:04,7,8"
    )
    assert read_trace(path).lines.tolist() == [3, 5]


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_takes_a_beginning(name: str) -> None:
    """Rows up to the limit are those of the whole trace."""
    whole = read_trace(FIXTURES / name)
    for limit in range(1, len(whole) + 2):
        part = read_trace(FIXTURES / name, limit=limit)
        count = min(limit, len(whole))
        assert len(part) == count
        np.testing.assert_array_equal(part.lines, whole.lines[:count])
        np.testing.assert_array_equal(part.arrival_ns, whole.arrival_ns[:count])


def test_lines_beyond_the_limit_are_not_judged(tmp_path: Path) -> None:
    """A limit lets the good beginning of a damaged file be used."""
    path = written(tmp_path, AZURE_HEADER, "2023-11-16 18:17:03,5,6", "nonsense")
    assert len(read_trace(path, limit=1)) == 1
    with pytest.raises(TraceError):
        read_trace(path, limit=2)


def test_unsorted_rows_are_sorted_stably_and_noted(tmp_path: Path) -> None:
    """Rows of equal time keep their order, and hash ids go with their rows."""
    row = '{{"timestamp": {}, "input_length": {}, "output_length": 1, "hash_ids": {}}}'
    path = written(
        tmp_path,
        row.format(20, 600, [7, 8]),
        row.format(10, 5, [1]),
        row.format(20, 6, [2]),
        row.format(10, 1030, [3, 4, 5]),
    )
    trace = read_trace(path)
    assert trace.lines.tolist() == [2, 4, 1, 3]
    assert trace.arrival_ns.tolist() == [0, 0, 10 * MILLISECOND, 10 * MILLISECOND]
    assert trace.hash_offsets is not None
    assert trace.hash_ids is not None
    assert trace.hash_ids.tolist() == [1, 3, 4, 5, 7, 8, 2]
    assert trace.hash_offsets.tolist() == [0, 1, 4, 6, 7]
    assert trace.notes == ("2 rows were earlier than the row before; sorted by time",)


def test_fractional_mooncake_times_keep_their_microseconds(tmp_path: Path) -> None:
    """A timestamp may be a decimal number of ms."""
    row = '{{"timestamp": {}, "input_length": 1, "output_length": 1, "hash_ids": [0]}}'
    path = written(tmp_path, row.format(1000), row.format(1000.125))
    assert read_trace(path).arrival_ns.tolist() == [0, 125_000]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**18), st.integers(1, MAX_TOKENS), st.integers(1, MAX_TOKENS)),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from(["", "Z", "+00:00", "-05:30", "+14:00"]),
)
def test_azure_times_survive_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int]], offset: str
) -> None:
    """Any ns of any date comes back exactly, sorted."""
    lines = [AZURE_HEADER]
    for time_ns, prompt, output in rows:
        moment = datetime(1990, 1, 1, tzinfo=UTC) + timedelta(seconds=time_ns // SECOND)
        stamp = f"{moment:%Y-%m-%d %H:%M:%S}.{time_ns % SECOND:09d}{offset}"
        lines.append(f"{stamp},{prompt},{output}")
    trace = read_trace(written(tmp_path_factory.mktemp("azure"), *lines))
    ordered = sorted(rows, key=lambda row: row[0])
    assert trace.arrival_ns.tolist() == [row[0] - ordered[0][0] for row in ordered]
    assert trace.prompt_tokens.tolist() == [row[1] for row in ordered]
    assert trace.output_tokens.tolist() == [row[2] for row in ordered]


@settings(deadline=None)
@given(st.lists(st.integers(0, 8 * 10**18), min_size=1, max_size=20))
def test_burstgpt_seconds_survive_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, times: list[int]
) -> None:
    """Decimal seconds are not squeezed through a float."""
    lines = [f"{t // SECOND}.{t % SECOND:09d},m,1,1,2,l" for t in times]
    trace = read_trace(written(tmp_path_factory.mktemp("burst"), BURSTGPT_HEADER, *lines))
    assert trace.arrival_ns.tolist() == [t - min(times) for t in sorted(times)]


def test_rows_and_line_numbers_hold_across_read_blocks(tmp_path: Path) -> None:
    """A file of several blocks is one trace, and errors late in it name the right line."""
    start = datetime(2024, 5, 10, tzinfo=UTC)
    times = [start + timedelta(milliseconds=7 * i) for i in range(60_000)]
    lines = [f"{time},{i % 999 + 1},{i % 7 + 1}" for i, time in enumerate(times)]
    trace = read_trace(written(tmp_path, AZURE_HEADER, *lines))
    index = np.arange(60_000)
    np.testing.assert_array_equal(trace.arrival_ns, index * 7 * MILLISECOND)
    np.testing.assert_array_equal(trace.prompt_tokens, index % 999 + 1)
    np.testing.assert_array_equal(trace.lines, index + 2)
    lines[100] = "\n\n" + lines[100]
    lines[55_000] = "2024-05-10 00:00:00,1,x"
    assert ":55004: GeneratedTokens: found 'x'" in refusal(written(tmp_path, AZURE_HEADER, *lines))
