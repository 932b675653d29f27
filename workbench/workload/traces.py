"""Recorded request traces: Mooncake JSON lines, Azure LLM inference CSV, BurstGPT CSV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from engine.core.workload import Int32, Int64
from workbench.workload.trace_csv import AZURE, BURSTGPT, CsvParser, split_header
from workbench.workload.trace_errors import Problems, TraceError, shortened
from workbench.workload.trace_lines import Lines, read_lines
from workbench.workload.trace_mooncake import DEFAULT_BLOCK_SIZE, EXAMPLE_LINE, MooncakeParser
from workbench.workload.trace_rows import RowParser, Rows

TraceFormat = Literal["mooncake", "azure", "burstgpt"]

_CSV_FORMATS: Final = {"azure": AZURE, "burstgpt": BURSTGPT}
_SUPPORTED: Final = (
    f"JSON lines like {EXAMPLE_LINE} (mooncake), or CSV that starts with "
    f"{AZURE.example_header!r} (azure) or {BURSTGPT.example_header!r} (burstgpt; further columns, "
    "such as 'Session ID', may be there)"
)


@dataclass(frozen=True, slots=True)
class Trace:
    """The usable rows of a trace, ordered by time.

    Attributes:
        path: the file as the user named it.
        format: what it was read as.
        lines: int64[n], line of the file that each row stands on, from 1.
        arrival_ns: int64[n], from the first of these rows; non-decreasing.
        prompt_tokens: int32[n], at least 1.
        output_tokens: int32[n], at least 1.
        block_size: prompt tokens per hash id.
        hash_offsets: int64[n + 1], rows of `hash_ids` that belong to row i; None if the format
            says nothing about shared text.
        hash_ids: int64[m], identity of each prompt's blocks, the last of which may be partial.
        skipped_rows: rows left out because no output token came back: failed requests.
        notes: what a reader of the results should know about the reading.
    """

    path: str
    format: TraceFormat
    lines: Int64
    arrival_ns: Int64
    prompt_tokens: Int32
    output_tokens: Int32
    block_size: int
    hash_offsets: Int64 | None
    hash_ids: Int64 | None
    skipped_rows: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.arrival_ns)


def read_trace(
    path: str | os.PathLike[str],
    *,
    trace_format: TraceFormat | Literal["auto"] = "auto",
    block_size: int = DEFAULT_BLOCK_SIZE,
    limit: int | None = None,
) -> Trace:
    """Read a trace file, plain or gzipped.

    Args:
        path: the file.
        trace_format: "auto" tells it by the first line.
        block_size: prompt tokens that a hash id of a mooncake trace stands for.
        limit: stop after this many usable rows, in the file's order.

    Raises:
        TraceError: the file cannot be read, has no usable row, or has bad fields; the message names
            the line and field of the first MAX_SHOWN of those.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    name = os.fspath(path)
    blocks = read_lines(path)
    first = next(blocks, None)
    if first is None:
        raise TraceError(name, f"the file is empty; expected {_SUPPORTED}")
    found = _format_of(name, first.texts[0], trace_format)
    notes: list[str] = []
    parser: RowParser
    if found == "mooncake":
        parser = MooncakeParser(block_size)
    else:
        csv_parser = parser = CsvParser(name, _CSV_FORMATS[found], first.texts[0])
        first = first.part(1, len(first.texts))
        if csv_parser.ignored_columns:
            ignored = ", ".join(map(shortened, csv_parser.ignored_columns))
            notes.append(f"ignored columns: {ignored}")
    rows, skipped_rows = _usable_rows(name, _chained(first, blocks), parser, limit)
    return _trace(name, found, rows, block_size, skipped_rows, notes)


def _format_of(path: str, first_line: bytes, wanted: TraceFormat | Literal["auto"]) -> TraceFormat:
    """The format that is wanted, unless the file looks like another; if any will do, its own."""
    fitting = _fitting_formats(first_line)
    if wanted != "auto":
        if fitting and wanted not in fitting:
            raise TraceError(path, f"this looks like {fitting[0]}, not like {wanted}")
        return wanted
    if fitting:
        return fitting[0]
    text = shortened(first_line.decode("utf-8", "replace"))
    raise TraceError(path, f"the first line is {text}; supported are {_SUPPORTED}")


def _fitting_formats(first_line: bytes) -> list[TraceFormat]:
    """Formats that a file with this first line may have."""
    if first_line.lstrip().startswith(b"{"):
        return ["mooncake"]
    names = set(split_header(first_line))
    csv: tuple[TraceFormat, ...] = ("azure", "burstgpt")
    return [name for name in csv if names.issuperset(_CSV_FORMATS[name].columns)]


def _chained(first: Lines, blocks: Iterator[Lines]) -> Iterator[Lines]:
    yield first
    yield from blocks


def _usable_rows(
    path: str, blocks: Iterator[Lines], parser: RowParser, limit: int | None
) -> tuple[Rows, int]:
    """All rows with output, and how many there were without."""
    problems = Problems(path)
    parts: list[Rows] = []
    usable = read = 0
    for block in blocks:
        done = 0
        while done < len(block.texts) and (limit is None or usable < limit):
            stop = len(block.texts) if limit is None else done + limit - usable
            rows = parser.parse(block.part(done, stop), problems)
            done = stop
            read += len(rows.lines)
            part = _with_output(rows, parser.prompt_field, problems)
            usable += len(part.lines)
            parts.append(part)
        if limit is not None and usable >= limit:
            break
    problems.raise_if_any()
    if not usable:
        what = f"none of its {read} rows has output tokens" if read else "it has no rows"
        raise TraceError(path, f"no request to replay: {what}")
    return Rows.joined(parts), read - usable


def _with_output(rows: Rows, prompt_field: str, problems: Problems) -> Rows:
    for row in np.flatnonzero((rows.prompt_tokens == 0) & (rows.output_tokens > 0)).tolist():
        problems.add(int(rows.lines[row]), prompt_field, "0", "at least 1, as there is output")
    if rows.output_tokens.all():
        return rows
    return rows.take(np.flatnonzero(rows.output_tokens))


def _trace(
    path: str,
    trace_format: TraceFormat,
    rows: Rows,
    block_size: int,
    skipped_rows: int,
    notes: list[str],
) -> Trace:
    if skipped_rows:
        notes.append(f"{skipped_rows} rows without output tokens (failed requests) were skipped")
    backwards = int(np.count_nonzero(np.diff(rows.time_ns) < 0))
    if backwards:
        rows = rows.take(np.argsort(rows.time_ns, kind="stable"))
        notes.append(f"{backwards} rows were earlier than the row before; sorted by time")
    hashed = trace_format == "mooncake"
    return Trace(
        path=path,
        format=trace_format,
        lines=rows.lines,
        arrival_ns=rows.time_ns - rows.time_ns[0],
        prompt_tokens=rows.prompt_tokens.astype(np.int32),
        output_tokens=rows.output_tokens.astype(np.int32),
        block_size=block_size,
        hash_offsets=np.append(0, np.cumsum(rows.hash_counts)) if hashed else None,
        hash_ids=rows.hash_ids if hashed else None,
        skipped_rows=skipped_rows,
        notes=tuple(notes),
    )
