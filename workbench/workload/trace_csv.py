"""Traces in CSV: Azure's LLM inference traces and BurstGPT.

Sources: https://github.com/Azure/AzurePublicDataset (2023: local time to 100 ns; 2024: microseconds
and an offset from UTC, both left out of whole seconds) and https://github.com/HPMLL/BurstGPT
(seconds, integers in the first release, decimals later). Columns are found by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

import numpy as np

from engine.core.workload import Int64
from workbench.workload.lengths import MAX_TOKENS
from workbench.workload.trace_errors import Problems, TraceError, shortened
from workbench.workload.trace_lines import Lines
from workbench.workload.trace_rows import Rows

_NS_PER_S = 1_000_000_000
_MAX_SECONDS = 9_000_000_000  # fits int64 nanoseconds
_SECOND = re.compile(r"(?:19[7-9]|2[01]\d)\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d", re.ASCII)
_SECOND_LENGTH = len("2024-05-10 00:00:00")
_FRACTION_AND_OFFSET = re.compile(
    r"(?:\.(?P<fraction>\d{1,9}))?(?:Z|(?P<sign>[+-])(?P<hours>\d\d):(?P<minutes>[0-5]\d))?",
    re.ASCII,
)
_DECIMAL = re.compile(r"(\d{1,10})(?:\.(\d+))?", re.ASCII)


class _CellError(Exception):
    """A cell does not hold what its column should."""


@dataclass(frozen=True, slots=True)
class CsvFormat:
    """Where a CSV trace keeps what.

    Attributes:
        name: the format's name in a scenario.
        example_header: a whole first line, for messages.
        time, prompt, output: names of the columns that are used.
        parse_time: a time's text -> ns.
        expected_time: what a time looks like, for messages.
    """

    name: str
    example_header: str
    time: str
    prompt: str
    output: str
    parse_time: Callable[[str], int]
    expected_time: str

    @property
    def columns(self) -> tuple[str, str, str]:
        """The columns that a file must have."""
        return self.time, self.prompt, self.output


class CsvParser:
    """Parses the lines after the header."""

    __slots__ = ("_format", "_indices", "_width", "ignored_columns")

    def __init__(self, path: str, csv_format: CsvFormat, header: bytes) -> None:
        """Find the columns.

        Raises:
            TraceError: a column is missing, or there twice.
        """
        names = split_header(header)
        for column in csv_format.columns:
            if names.count(column) != 1:
                state = "missing from" if column not in names else "there twice in"
                raise TraceError(
                    path,
                    f"column {column!r} is {state} the header {shortened(','.join(names))}; "
                    f"{csv_format.name} traces start with {csv_format.example_header!r}",
                )
        self._format = csv_format
        self._indices = [names.index(column) for column in csv_format.columns]
        self._width = len(names)
        known = csv_format.example_header.split(",")
        self.ignored_columns = tuple(name for name in names if name and name not in known)

    @property
    def prompt_field(self) -> str:
        return self._format.prompt

    def parse(self, lines: Lines, problems: Problems) -> Rows:
        used = self._format
        numbers, rows = self._cells(lines, problems)
        cells = list(zip(*rows, strict=True)) or [()] * self._width
        time, prompt, output = (cells[index] for index in self._indices)
        return Rows(
            numbers,
            _column(time, used.parse_time, numbers, used.time, used.expected_time, problems),
            _column(prompt, _parse_tokens, numbers, used.prompt, EXPECTED_TOKENS, problems),
            _column(output, _parse_tokens, numbers, used.output, EXPECTED_TOKENS, problems),
            np.zeros(len(numbers), np.int64),
            np.empty(0, np.int64),
        )

    def _cells(self, lines: Lines, problems: Problems) -> tuple[Int64, list[list[str]]]:
        decoded = b"\n".join(lines.texts).decode("utf-8", "replace")
        texts = decoded.split("\n") if lines.texts else []
        rows = [text.split(",") for text in texts]
        if {len(row) for row in rows} <= {self._width}:
            return lines.numbers, rows
        kept = []
        for i, row in enumerate(rows):
            if len(row) == self._width:
                kept.append(i)
            else:
                found = f"{len(row)} columns in {shortened(texts[i])}"
                expected = f"{self._width}, as in the header"
                problems.add(int(lines.numbers[i]), "line", found, expected)
        return lines.numbers[kept], [rows[i] for i in kept]


def split_header(header: bytes) -> list[str]:
    """Column names of a first line."""
    return [name.strip() for name in header.decode("utf-8", "replace").split(",")]


def _column(
    cells: Sequence[str],
    parse: Callable[[str], int],
    numbers: Int64,
    field: str,
    expected: str,
    problems: Problems,
) -> Int64:
    """int64[n] values of a column; a cell that does not parse becomes a problem, and 1 here."""
    try:
        return np.fromiter(map(parse, cells), np.int64, len(cells))
    except _CellError:
        pass
    values = np.ones(len(cells), np.int64)
    for i, cell in enumerate(cells):
        try:
            values[i] = parse(cell)
        except _CellError:
            problems.add(int(numbers[i]), field, shortened(cell), expected)
    return values


EXPECTED_TOKENS: Final = f"a whole number of tokens from 0 to {MAX_TOKENS}"


def _parse_tokens(cell: str) -> int:
    text = cell.strip()
    if not (text.isdecimal() and text.isascii()) or len(text) > 10:
        raise _CellError
    tokens = int(text)
    if tokens > MAX_TOKENS:
        raise _CellError
    return tokens


def _parse_wall_clock(cell: str) -> int:
    """Ns since 1970 in UTC, exactly; a time without offset is taken as UTC."""
    text = cell.strip()
    rest = _FRACTION_AND_OFFSET.fullmatch(text, _SECOND_LENGTH)
    if rest is None:
        raise _CellError
    fraction, sign, hours, minutes = rest.groups()
    time_ns = _epoch_seconds(text[:_SECOND_LENGTH]) * _NS_PER_S
    if fraction:
        time_ns += int(fraction.ljust(9, "0"))
    if sign:
        offset_ns = (int(hours) * 3600 + int(minutes) * 60) * _NS_PER_S
        time_ns += offset_ns if sign == "-" else -offset_ns
    return time_ns


@lru_cache(maxsize=64)
def _epoch_seconds(text: str) -> int:
    """Whole seconds since 1970; cached because rows of one second follow each other."""
    if not _SECOND.fullmatch(text):
        raise _CellError
    try:
        moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        raise _CellError from None
    return (moment - _EPOCH) // timedelta(seconds=1)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _parse_seconds(cell: str) -> int:
    """Ns of a decimal number of seconds, exactly; digits beyond the ninth are dropped."""
    number = _DECIMAL.fullmatch(cell.strip())
    if number is None:
        raise _CellError
    whole, fraction = int(number[1]), number[2] or ""
    if whole > _MAX_SECONDS:
        raise _CellError
    return whole * _NS_PER_S + int(fraction[:9].ljust(9, "0"))


AZURE: Final = CsvFormat(
    name="azure",
    example_header="TIMESTAMP,ContextTokens,GeneratedTokens",
    time="TIMESTAMP",
    prompt="ContextTokens",
    output="GeneratedTokens",
    parse_time=_parse_wall_clock,
    expected_time="a time like 2024-05-10 00:00:00.009930+00:00, of the years 1970 to 2199",
)

BURSTGPT: Final = CsvFormat(
    name="burstgpt",
    example_header="Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
    time="Timestamp",
    prompt="Request tokens",
    output="Response tokens",
    parse_time=_parse_seconds,
    expected_time=f"seconds from 0 to {_MAX_SECONDS}, like 45 or 45.5",
)
