"""Reads what `nsys export --type sqlite` writes, as a trace.

Kernels, copies and fills come from the tables CUPTI_ACTIVITY_KIND_KERNEL, _MEMCPY and _MEMSET,
calls of CUDA from _RUNTIME, ranges from NVTX_EVENTS; names stand in StringIds. nsys creates only
the tables that it needs, and columns differ between versions: what is not there is left out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from engine.profiling.op_classes import RANGE
from workbench.profile.trace import DeviceWork, HostWork, Trace, TraceFileError, kernel_name
from workbench.profile.wrong_file import WRONG, checked, in_words

_PUSH_POP: Final = (59, 60)  # eventType of a range: pushed and popped, or started and ended
_NO_NODES: Final = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
_MAGIC: Final = b"SQLite format 3\x00"


def is_sqlite(path: Path) -> bool:
    """Whether a file is a SQLite database. Raises OSError: it cannot be read."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_nsys(path: Path) -> Trace:
    """Read an exported report.

    Raises:
        TraceFileError: it is none, is damaged or holds no kernels; says what would help.
    """
    try:
        address = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as database:
            database.row_factory = sqlite3.Row
            return _read(database, path)
    except sqlite3.Error as error:
        raise TraceFileError(f"{path} is no report that nsys exported: {error}") from error
    except TraceFileError:
        raise
    except WRONG as error:
        raise TraceFileError(f"{path} is no report that nsys exported: {in_words(error)}") from None


def _read(database: sqlite3.Connection, path: Path) -> Trace:
    tables = {str(row[0]) for row in database.execute("SELECT name FROM sqlite_master")}
    if "StringIds" not in tables:
        raise TraceFileError(f"{path} has no table StringIds: give `nsys export --type sqlite`")
    names = {row["id"]: row["value"] for row in database.execute("SELECT id, value FROM StringIds")}
    device = list(_device(database, tables, names))
    if not device:
        raise TraceFileError(f"{path} holds no kernels{_hint(tables)}")
    device.sort(key=lambda work: (work.start_us, work.end_us))
    host = [*_calls(database, tables, names), *_ranges(database, tables, names)]
    host.sort(key=lambda work: (work.start_us, -work.end_us))
    return Trace(tuple(device), tuple(host), {"source": path.name})


def _hint(tables: set[str]) -> str:
    if _NO_NODES in tables:
        return ", only whole CUDA Graphs: record it with --cuda-graph-trace=node"
    return ": record it with --trace=cuda,nvtx"


def _device(
    database: sqlite3.Connection, tables: set[str], names: dict[int, str]
) -> Iterator[DeviceWork]:
    for table, title in (("KERNEL", ""), ("MEMCPY", "Memcpy"), ("MEMSET", "Memset")):
        for row in _rows(database, tables, f"CUPTI_ACTIVITY_KIND_{table}"):
            name = title or kernel_name(names.get(_value(row, "demangledName"), "unknown"))
            kind = "copy" if title else "kernel"
            yield DeviceWork(
                name, kind, _us(row, "start"), _us(row, "end"), int(_value(row, "streamId") or 0),
                _optional(row, "correlationId"),
            )  # fmt: skip


def _calls(
    database: sqlite3.Connection, tables: set[str], names: dict[int, str]
) -> Iterator[HostWork]:
    for row in _rows(database, tables, "CUPTI_ACTIVITY_KIND_RUNTIME"):
        name = names.get(_value(row, "nameId"), "unknown").partition("_v")[0]
        yield HostWork(
            name, "cuda_runtime", _us(row, "start"), _us(row, "end"),
            str(_optional(row, "globalTid")), _optional(row, "correlationId"),
        )  # fmt: skip


def _ranges(
    database: sqlite3.Connection, tables: set[str], names: dict[int, str]
) -> Iterator[HostWork]:
    for row in _rows(database, tables, "NVTX_EVENTS"):
        text = _value(row, "text") or names.get(_optional(row, "textId"))
        if _value(row, "eventType") in _PUSH_POP and text and _value(row, "end") is not None:
            yield HostWork(
                RANGE + text, "user_annotation", _us(row, "start"), _us(row, "end"),
                str(_optional(row, "globalTid")), -1,
            )  # fmt: skip


def _rows(database: sqlite3.Connection, tables: set[str], table: str) -> Iterator[sqlite3.Row]:
    if table in tables:
        yield from database.execute(f'SELECT * FROM "{table}"')  # noqa: S608 - one of our own names


def _value(row: sqlite3.Row, column: str) -> Any:
    try:
        return row[column]
    except IndexError:
        raise KeyError(column) from None


def _us(row: sqlite3.Row, column: str) -> float:
    """A time, which nsys has in ns."""
    return checked(column, _value(row, column)) / 1e3


def _optional(row: sqlite3.Row, column: str) -> int:
    value: Any = row[column] if column in row.keys() else None  # noqa: SIM118 - a Row has values
    return -1 if value is None else int(value)
