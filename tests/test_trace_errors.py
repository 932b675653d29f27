"""What the trace readers refuse, with errors that name line and field."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import pytest
from trace_files import AZURE_HEADER, BURSTGPT_HEADER, FIXTURES, refusal, written

from workbench.workload.lengths import MAX_TOKENS
from workbench.workload.trace_errors import MAX_SHOWN, TraceError
from workbench.workload.traces import read_trace

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
    path = written(tmp_path, AZURE_HEADER, GOOD_AZURE, line)
    message = refusal(path)
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
    message = refusal(written(tmp_path, BURSTGPT_HEADER, GOOD_BURST, line))
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
    path = written(tmp_path, MOONCAKE, MOONCAKE.replace(old, new))
    message = refusal(path)
    assert f"{path}:2: {field}: found " in message
    assert expected in message


def test_the_first_problems_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    """Ten messages are enough to see the pattern; the number of the others is told."""
    bad = ["2023-11-16 18:17:03,x,1"] * 12 + ["2023-11-16 18:17:03,y,z"]
    path = written(tmp_path, AZURE_HEADER, *bad)
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
    assert "one for each 256 tokens" in refusal(path, block_size=256)


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", "\ufeff\r\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    """Nothing to replay is an error that says what could be there."""
    message = refusal(written(tmp_path, content))
    assert "is empty" in message
    assert AZURE_HEADER in message


def test_a_header_alone_is_refused(tmp_path: Path) -> None:
    """A trace without rows has no request to replay."""
    assert "no request to replay: it has no rows" in refusal(written(tmp_path, AZURE_HEADER))


def test_only_failed_requests_are_refused(tmp_path: Path) -> None:
    """Nor has one whose rows are all skipped."""
    path = written(tmp_path, BURSTGPT_HEADER, "5,m,9,0,9,l", "6,m,9,0,9,l")
    assert "none of its 2 rows has output tokens" in refusal(path)


def test_an_unknown_header_names_the_known_ones(tmp_path: Path) -> None:
    """A file of another format is refused with the formats that are supported."""
    message = refusal(written(tmp_path, "time,in,out", "1,2,3"))
    assert "'time,in,out'" in message
    for known in (AZURE_HEADER, BURSTGPT_HEADER, "hash_ids", "Session ID"):
        assert known in message


@pytest.mark.parametrize("wrong", ["burstgpt", "mooncake"])
def test_a_file_of_another_format_is_told_in_one_line(wrong: str) -> None:
    """With the wrong format given, the message is the right one and nothing else."""
    path = FIXTURES / "azure_2023.csv"
    message = f"{path}: this looks like azure, not like {wrong}"
    assert refusal(path, trace_format=wrong) == message


def test_a_header_against_the_format_names_the_column(tmp_path: Path) -> None:
    """With a format given and none that fits, the missing column is what is wrong."""
    path = written(tmp_path, "time,prompt,output", "1,2,3")
    assert "column 'Timestamp' is missing" in refusal(path, trace_format="burstgpt")
    path = written(tmp_path, AZURE_HEADER + ",TIMESTAMP", "1,2,3,4")
    assert "column 'TIMESTAMP' is there twice" in refusal(path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """Missing files, directories and impossible names are errors about the path."""
    assert "there is no such file" in refusal(tmp_path / "missing.csv")
    assert "cannot be read" in refusal(tmp_path)
    assert "cannot be opened" in refusal(Path("a\0b"))


def test_damaged_gzip_files_are_refused(tmp_path: Path) -> None:
    """A broken download is called that."""
    whole = gzip.compress((FIXTURES / "azure_2023.csv").read_bytes())
    for content in (whole[:-9], whole[:20], whole[:15] + b"\xff" * 20 + whole[35:]):
        path = tmp_path / "trace.csv.gz"
        path.write_bytes(content)
        assert "the gzip file is damaged" in refusal(path)


def test_an_endless_line_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    """A small gzip file cannot unpack into all of the memory."""
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"x" * (200 << 20), 1))
    tracemalloc.start()
    try:
        assert "a line is longer than" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    """A limit of no rows is a mistake of the caller."""
    with pytest.raises(ValueError, match="limit must be at least 1"):
        read_trace(FIXTURES / "azure_2023.csv", limit=limit)
