"""Laws of the trace readers: exact times, exact lengths, and errors that name line and field."""

from __future__ import annotations

import gzip
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.lengths import MAX_TOKENS
from workbench.trace_errors import MAX_SHOWN, TraceError
from workbench.traces import Trace, read_trace

FIXTURES = Path(__file__).parent / "fixtures" / "traces"
NAMES = ("azure_2023.csv", "azure_2024.csv", "burstgpt_v1.csv", "burstgpt_v2.csv", "mooncake.jsonl")
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
BURSTGPT_HEADER = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
MILLISECOND, SECOND = 1_000_000, 1_000_000_000


def _assert_same(a: Trace, b: Trace) -> None:
    assert a.format == b.format
    assert a.skipped_rows == b.skipped_rows
    for name in ("arrival_ns", "prompt_tokens", "output_tokens", "hash_offsets", "hash_ids"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def _written(folder: Path, *lines: str) -> Path:
    path = folder / "trace"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _refusal(path: Path, **options: object) -> str:
    with pytest.raises(TraceError) as caught:
        read_trace(path, **options)
    return str(caught.value)


# What is read


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
    path = _written(
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
    path = _written(tmp_path, AZURE_HEADER, "2023-11-16 18:17:03,5,6", "nonsense")
    assert len(read_trace(path, limit=1)) == 1
    with pytest.raises(TraceError):
        read_trace(path, limit=2)


def test_unsorted_rows_are_sorted_stably_and_noted(tmp_path: Path) -> None:
    """Rows of equal time keep their order, and hash ids go with their rows."""
    row = '{{"timestamp": {}, "input_length": {}, "output_length": 1, "hash_ids": {}}}'
    path = _written(
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
    path = _written(tmp_path, row.format(1000), row.format(1000.125))
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
    trace = read_trace(_written(tmp_path_factory.mktemp("azure"), *lines))
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
    trace = read_trace(_written(tmp_path_factory.mktemp("burst"), BURSTGPT_HEADER, *lines))
    assert trace.arrival_ns.tolist() == [t - min(times) for t in sorted(times)]


def test_rows_and_line_numbers_hold_across_read_blocks(tmp_path: Path) -> None:
    """A file of several blocks is one trace, and errors late in it name the right line."""
    start = datetime(2024, 5, 10, tzinfo=UTC)
    times = [start + timedelta(milliseconds=7 * i) for i in range(60_000)]
    lines = [f"{time},{i % 999 + 1},{i % 7 + 1}" for i, time in enumerate(times)]
    trace = read_trace(_written(tmp_path, AZURE_HEADER, *lines))
    index = np.arange(60_000)
    np.testing.assert_array_equal(trace.arrival_ns, index * 7 * MILLISECOND)
    np.testing.assert_array_equal(trace.prompt_tokens, index % 999 + 1)
    np.testing.assert_array_equal(trace.lines, index + 2)
    lines[100] = "\n\n" + lines[100]
    lines[55_000] = "2024-05-10 00:00:00,1,x"
    assert ":55004: GeneratedTokens: found 'x'" in _refusal(
        _written(tmp_path, AZURE_HEADER, *lines)
    )


# What is refused

GOOD_AZURE = "2023-11-16 18:17:03.9799600,4808,10"
GOOD_BURST = "5,ChatGPT,472,18,490,Conversation log"
MOONCAKE = '{"timestamp": 1, "input_length": 600, "output_length": 2, "hash_ids": [0, 1]}'


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ("2023-11-16 18:17:03,abc,10", "ContextTokens", "'abc'"),
        ("2023-11-16 18:17:03,-5,10", "ContextTokens", "'-5'"),
        ("2023-11-16 18:17:03,,10", "ContextTokens", "''"),
        ("2023-11-16 18:17:03,0,10", "ContextTokens", "at least 1"),
        ("2023-11-16 18:17:03,5,1.5", "GeneratedTokens", "'1.5'"),
        (f"2023-11-16 18:17:03,{MAX_TOKENS + 1},1", "ContextTokens", f"to {MAX_TOKENS}"),
        (f"2023-11-16 18:17:03,5,{'9' * 5000}", "GeneratedTokens", "…"),
        ("2023-11-16 18:17:03,٣,1", "ContextTokens", "whole number"),
        ("2023-13-16 18:17:03,5,1", "TIMESTAMP", "'2023-13-16 18:17:03'"),
        ("2023-02-29 18:17:03,5,1", "TIMESTAMP", "a time like"),
        ("0023-02-21 18:17:03,5,1", "TIMESTAMP", "1970 to 2199"),
        ("2023-11-16 24:17:03,5,1", "TIMESTAMP", "a time like"),
        ("2023-11-16 18:17:03.,5,1", "TIMESTAMP", "a time like"),
        ("2023-11-16 18:17:03.0123456789,5,1", "TIMESTAMP", "a time like"),
        ("2023-11-16 18:17:03+0000,5,1", "TIMESTAMP", "a time like"),
        ("2023-11-16,5,1", "TIMESTAMP", "a time like"),
        ("1700000000,5,1", "TIMESTAMP", "a time like"),
        (",5,1", "TIMESTAMP", "a time like"),
        ("2023-11-16 18:17:03,5", "line", "found 2 columns"),
        ("2023-11-16 18:17:03,5,1,7", "line", "found 4 columns"),
    ],
)
def test_a_bad_azure_field_is_named(tmp_path: Path, line: str, field: str, expected: str) -> None:
    """The message says file, line and column, what was found and what belongs there."""
    path = _written(tmp_path, AZURE_HEADER, GOOD_AZURE, line)
    message = _refusal(path)
    assert f"{path}:3: {field}: found " in message
    assert expected in message


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ("x,ChatGPT,472,18,490,log", "Timestamp", "found 'x', expected seconds"),
        ("-1,ChatGPT,472,18,490,log", "Timestamp", "found '-1'"),
        ("nan,ChatGPT,472,18,490,log", "Timestamp", "found 'nan'"),
        ("9000000001,ChatGPT,472,18,490,log", "Timestamp", "from 0 to 9000000000"),
        ("5,ChatGPT,0,18,18,log", "Request tokens", "at least 1"),
        ("5,ChatGPT,472,-18,490,log", "Response tokens", "found '-18'"),
    ],
)
def test_a_bad_burstgpt_field_is_named(
    tmp_path: Path, line: str, field: str, expected: str
) -> None:
    """As for Azure's columns."""
    message = _refusal(_written(tmp_path, BURSTGPT_HEADER, GOOD_BURST, line))
    assert f":3: {field}: " in message
    assert expected in message


@pytest.mark.parametrize(
    ("old", "new", "field", "expected"),
    [
        (
            "[0, 1]",
            "[0]",
            "hash_ids",
            "found 1 ids, expected 2: one for each 512 tokens of the 600",
        ),
        ("[0, 1]", "[0, 1, 2]", "hash_ids", "found 3 ids, expected 2"),
        ("[0, 1]", "[0, -1]", "hash_ids", "found [0, -1], expected a list of whole numbers"),
        ("[0, 1]", "[0, 9223372036854775808]", "hash_ids", "a list of whole numbers"),
        ("[0, 1]", '[0, "a"]', "hash_ids", "found [0, 'a']"),
        ("[0, 1]", "7", "hash_ids", "found 7"),
        (', "hash_ids": [0, 1]', "", "hash_ids", "found nothing"),
        ("600", '"600"', "input_length", "found '600', expected a whole number of tokens"),
        ("600", "-1", "input_length", "found -1"),
        ("600", "1e300", "input_length", "found 1e+300"),
        ("600", "9" * 5000, "line", "out of range"),
        ("[0, 1]", '[0, "\\ud800"]', "line", "expected JSON like"),
        ("[0, 1]", "7 [", "line", "malformed"),
        ("600", "0", "hash_ids", "found 2 ids, expected 0"),
        ('"output_length": 2', '"output_length": -2', "output_length", "found -2"),
        ('"output_length": 2', '"output_length": true', "output_length", "found True"),
        ('"timestamp": 1', '"timestamp": -1', "timestamp", "milliseconds from 0"),
        ('"timestamp": 1', '"timestamp": null', "timestamp", "found None"),
        ('"timestamp": 1', '"timestamp": 1e18', "timestamp", "milliseconds from 0"),
        ("}", "", "line", "expected JSON like"),
        (MOONCAKE, "[1, 2]", "line", "found '[1, 2]'"),
        (MOONCAKE, '{"a":' * 50_000, "line", "expected JSON like"),
        (MOONCAKE, AZURE_HEADER, "line", "expected JSON like"),
    ],
)
def test_a_bad_mooncake_field_is_named(
    tmp_path: Path, old: str, new: str, field: str, expected: str
) -> None:
    """The field of a JSON line is named, or the line if it is no such JSON at all."""
    path = _written(tmp_path, MOONCAKE, MOONCAKE.replace(old, new))
    message = _refusal(path)
    assert f"{path}:2: {field}: found " in message
    assert expected in message


def test_the_first_problems_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    """Ten messages are enough to see the pattern; the number of the others is told."""
    bad = ["2023-11-16 18:17:03,x,1"] * 12 + ["2023-11-16 18:17:03,y,z"]
    path = _written(tmp_path, AZURE_HEADER, *bad)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    error = caught.value
    assert len(error.problems) == MAX_SHOWN == 10
    assert [problem.line for problem in error.problems] == list(range(2, 12))
    assert error.more == 4
    assert str(error).startswith(f"{path}: 14 fields are not as the format demands\n")
    assert str(error).endswith("... and 4 more")


def test_the_wrong_block_size_is_told_by_the_count_of_hash_ids(tmp_path: Path) -> None:
    """A block size that does not fit the file is an error, not a different workload."""
    path = FIXTURES / "mooncake.jsonl"
    assert "one for each 256 tokens" in _refusal(path, block_size=256)


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", "\ufeff\r\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    """Nothing to replay is an error that says what could be there."""
    message = _refusal(_written(tmp_path, content))
    assert "is empty" in message
    assert AZURE_HEADER in message


def test_a_header_alone_is_refused(tmp_path: Path) -> None:
    """A trace without rows has no request to replay."""
    assert "no request to replay: it has no rows" in _refusal(_written(tmp_path, AZURE_HEADER))


def test_only_failed_requests_are_refused(tmp_path: Path) -> None:
    """Nor has one whose rows are all skipped."""
    path = _written(tmp_path, BURSTGPT_HEADER, "5,m,9,0,9,l", "6,m,9,0,9,l")
    assert "none of its 2 rows has output tokens" in _refusal(path)


def test_an_unknown_header_names_the_known_ones(tmp_path: Path) -> None:
    """A file of another format is refused with the formats that are supported."""
    message = _refusal(_written(tmp_path, "time,in,out", "1,2,3"))
    assert "'time,in,out'" in message
    for known in (AZURE_HEADER, BURSTGPT_HEADER, "hash_ids", "Session ID"):
        assert known in message


@pytest.mark.parametrize("wrong", ["burstgpt", "mooncake"])
def test_a_file_of_another_format_is_told_in_one_line(wrong: str) -> None:
    """With the wrong format given, the message is the right one and nothing else."""
    path = FIXTURES / "azure_2023.csv"
    refusal = _refusal(path, trace_format=wrong)
    assert refusal == f"{path}: this looks like azure, not like {wrong}"


def test_a_header_against_the_format_names_the_column(tmp_path: Path) -> None:
    """With a format given and none that fits, the missing column is what is wrong."""
    path = _written(tmp_path, "time,prompt,output", "1,2,3")
    assert "column 'Timestamp' is missing" in _refusal(path, trace_format="burstgpt")
    path = _written(tmp_path, AZURE_HEADER + ",TIMESTAMP", "1,2,3,4")
    assert "column 'TIMESTAMP' is there twice" in _refusal(path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """Missing files, directories and impossible names are errors about the path."""
    assert "there is no such file" in _refusal(tmp_path / "missing.csv")
    assert "cannot be read" in _refusal(tmp_path)
    assert "cannot be opened" in _refusal(Path("a\0b"))


def test_damaged_gzip_files_are_refused(tmp_path: Path) -> None:
    """A broken download is called that."""
    whole = gzip.compress((FIXTURES / "azure_2023.csv").read_bytes())
    for content in (whole[:-9], whole[:20], whole[:15] + b"\xff" * 20 + whole[35:]):
        path = tmp_path / "trace.csv.gz"
        path.write_bytes(content)
        assert "the gzip file is damaged" in _refusal(path)


def test_an_endless_line_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    """A small gzip file cannot unpack into all of the memory."""
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"x" * (200 << 20), 1))
    tracemalloc.start()
    try:
        assert "a line is longer than" in _refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    """A limit of no rows is a mistake of the caller."""
    with pytest.raises(ValueError, match="limit must be at least 1"):
        read_trace(FIXTURES / "azure_2023.csv", limit=limit)


# Fuzz

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
