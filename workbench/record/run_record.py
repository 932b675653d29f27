"""A run on disk: `runs/<name>-<n>/` with its header, event segments and summary.

`docs/run_record.md` describes the format. Every file is whole or absent, and `header.json` says
"complete" only after everything else has been written.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.core.bounded_file import read_bounded
from engine.core.enums import ItemKind
from engine.core.events import TABLES, Columns, Detail, Segment, empty_columns, recorded_tables
from workbench.record.atomic_file import write_atomic
from workbench.record.columns import narrow_segment, rows, widen
from workbench.record.errors import RunRecordError
from workbench.record.header import HeaderError, RunHeader, Status, decode_header, encode_header
from workbench.record.result_folder import make_folder

Summary = dict[str, Any]
Arrays = Mapping[str, NDArray[np.generic]]

HEADER: Final = "header.json"
SUMMARY: Final = "summary.json"
EVENTS: Final = "events"
JOURNAL: Final = "journal.npz"
_SINCE_FORMAT_2: Final = {"steps": ("shared_context",)}


class RunWriter:
    """Writes one run; `write_segment` is the sink of an `EventLog`.

    Args:
        root: the directory of all runs; made if absent.
        name: of the scenario; other characters than letters, digits, `.`, `_` and `-` become `-`.
        header: facts of the run. Its `detail` decides which tables are kept.

    Raises:
        RunRecordError: from every method, when something cannot be written. The record is then
            marked "failed" as far as the disk allows, and takes no more.
    """

    def __init__(self, root: Path, name: str, header: RunHeader) -> None:
        self.header = header
        self._tables = recorded_tables(Detail[header.detail.upper()])
        self._segments = 0
        self._rows = dict.fromkeys(self._tables, 0)
        self.path = _claim_directory(Path(root), name)
        try:
            make_folder(self.path / EVENTS)
            self._write_header(msgspec.structs.replace(header, status="running"))
        except RunRecordError:
            _remove_empty_run(self.path)
            raise

    def write_segment(self, segment: Segment) -> None:
        """Write the tables of this run's detail as the next segment file."""
        kept = narrow_segment(segment, self._tables)
        if not kept:
            return
        arrays = {
            f"{t}/{column}": a for t, columns in kept.items() for column, a in columns.items()
        }
        self.add_arrays(f"{EVENTS}/{self._segments:05d}.npz", arrays)
        self._segments += 1
        for table, columns in kept.items():
            self._rows[table] += rows(columns)

    def add_arrays(self, file_name: str, arrays: Arrays) -> None:
        """Write further arrays beside the events, such as `journal.npz`."""
        self._write(self.path / file_name, _npz(arrays))

    def finish(self, summary: Summary) -> None:
        """Write the summary and declare the record complete."""
        self._end("complete", None, summary)

    def interrupted(self, summary: Summary, reason: str) -> None:
        """Write the summary of what there is and say that the run was cut short."""
        self._end("interrupted", reason, summary)

    def failed(self, reason: str, summary: Summary | None = None) -> None:
        """Say that the run broke off, with the summary of what there is, if there is one."""
        self._end("failed", reason, summary)

    def _end(self, status: Status, reason: str | None, summary: Summary | None) -> None:
        if summary is not None:
            self._write(self.path / SUMMARY, encode_summary(summary))
        self._check_open()
        self._write_header(
            msgspec.structs.replace(
                self.header,
                status=status,
                status_reason=reason,
                segments=self._segments,
                rows=dict(self._rows),
            )
        )

    def _write_header(self, header: RunHeader) -> None:
        write_atomic(self.path / HEADER, encode_header(header))
        self.header = header

    def _check_open(self) -> None:
        if self.header.status != "running":
            raise RunRecordError(f"cannot add to {self.path}: the run is {self.header.status}")

    def _write(self, path: Path, data: bytes | memoryview) -> None:
        self._check_open()
        try:
            write_atomic(path, data)
        except RunRecordError as error:
            with suppress(RunRecordError):
                self.failed(str(error))
            raise


class RunReader:
    """Reads a run directory, finished or not.

    Raises:
        RunRecordError: the directory is no run or of a newer format, or a file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.header = self._read_header()
        self._segment_paths = self._find_segments()
        self._decode_batches: dict[int, _DecodeBatches] = {}

    @property
    def status(self) -> Status:
        """Whether the run is complete, interrupted, failed, or (still) running."""
        return self.header.status

    @property
    def summary(self) -> Summary:
        """The metrics of the run, as `workbench.metrics.run_metrics.summarize` made them."""
        path = self.path / SUMMARY
        if not path.exists():
            raise RunRecordError(f"{path} is missing: {self.header.how_it_ended()}")
        try:
            loaded = json.loads(_read_bytes(path))
        except (ValueError, RecursionError) as error:
            raise RunRecordError(f"{path} is damaged: {error}") from error
        if not isinstance(loaded, dict):
            raise RunRecordError(f"{path} is damaged: it holds no JSON object")
        return loaded

    def recorded(self, table: str) -> bool:
        """Whether the detail of this run includes the table."""
        return table in recorded_tables(Detail[self.header.detail.upper()])

    def table(self, name: str, columns: tuple[str, ...] | None = None) -> Columns:
        """Columns of a table (all, or those named) over all segments, with the dtypes of `TABLES`.

        A table that was not recorded has no rows; a column that its format did not have is 0.
        """
        if name not in TABLES:
            raise KeyError(f"no table {name!r}; there are {', '.join(TABLES)}")
        wanted = tuple(TABLES[name]) if columns is None else columns
        empty = empty_columns(name)
        parts: dict[str, list[NDArray[np.generic]]] = {key: [empty[key]] for key in wanted}
        newer = {key for key in _SINCE_FORMAT_2.get(name, ()) if self.header.format < 2}
        for path in self._segment_paths:
            arrays = _read_arrays(path, tuple(f"{name}/{key}" for key in wanted))
            if newer.intersection(wanted):
                rows = _read_arrays(path, (f"{name}/{next(iter(TABLES[name]))}",))
                arrays |= {
                    f"{name}/{key}": np.zeros_like(c) for c in rows.values() for key in newer
                }
            for key, column in arrays.items():
                parts[key.partition("/")[2]].append(column)
        return widen(name, {key: np.concatenate(part) for key, part in parts.items()})

    def tables(self) -> Segment:
        """All tables, those that were not recorded without rows."""
        return {name: self.table(name) for name in TABLES}

    def arrays(self, file_name: str) -> dict[str, NDArray[np.generic]]:
        """Arrays that were added beside the events (`RunWriter.add_arrays`)."""
        path = self.path / file_name
        if not path.exists():
            raise RunRecordError(f"{path} is missing: this run did not record it")
        return _read_arrays(path, None)

    def items_of_step(self, replica: int, step: int) -> Columns:
        """What the batch of one step held, in the columns of `items` without `step`, `replica`.

        Prefill chunks and verify items stand first, as recorded; then the decoding requests, found
        from `decode_spans`, by request id. Needs detail `items`.

        Raises:
            RunRecordError: the detail is too low, or there is no such step.
        """
        if not self.recorded("items"):
            raise RunRecordError(
                f"{self.path} has detail {self.header.detail!r}; "
                "the items of a step need a run with detail 'items' or 'pages'"
            )
        if replica not in self._decode_batches:
            self._decode_batches[replica] = _DecodeBatches(self, replica)
        return self._decode_batches[replica].items(step)

    def _read_header(self) -> RunHeader:
        path = self.path / HEADER
        if not path.is_file():
            raise RunRecordError(f"{self.path} is no run: it has no {HEADER}")
        try:
            return decode_header(_read_bytes(path))
        except HeaderError as error:
            raise RunRecordError(f"cannot read {path}: {error}") from error

    def _find_segments(self) -> list[Path]:
        paths = sorted((self.path / EVENTS).glob("[0-9]*.npz"))
        due = len(paths) if self.header.segments is None else self.header.segments
        expected = [self.path / EVENTS / f"{i:05d}.npz" for i in range(due)]
        missing = sorted(set(expected) - set(paths))
        if missing:
            raise RunRecordError(f"{missing[0]} is missing: the record of this run is not whole")
        return expected


class _DecodeBatches:
    """Finds the batch of any step of one replica; holds that replica's rows in memory."""

    def __init__(self, run: RunReader, replica: int) -> None:
        self._path = run.path
        self._replica = replica
        steps = run.table("steps", ("replica", "step", "decode_iteration"))
        self._steps = _by_step(_of_replica(steps, replica))
        self._items = _by_step(_of_replica(run.table("items"), replica))
        self._spans = _of_replica(run.table("decode_spans"), replica)

    def items(self, step: int) -> Columns:
        iterations = _rows_of_step(self._steps, step)["decode_iteration"]
        if not len(iterations):
            raise RunRecordError(f"{self._path} has no step {step} of replica {self._replica}")
        names = ("request_id", "kind", "num_tokens", "context_tokens")
        listed = {name: _rows_of_step(self._items, step)[name] for name in names}
        decoding = self._decoding(int(iterations[0]))
        unlisted = ~np.isin(decoding["request_id"], listed["request_id"])
        return {name: np.concatenate([listed[name], decoding[name][unlisted]]) for name in names}

    def _decoding(self, iteration: int) -> Columns:
        """Decode items of an iteration: every span that was open then, one token each."""
        spans = self._spans
        since = iteration - spans["first_iteration"].astype(np.int64)
        open_then = np.flatnonzero((since >= 0) & (since < spans["scheduled"]) & (iteration >= 0))
        open_then = open_then[np.argsort(spans["request_id"][open_then], kind="stable")]
        context = spans["context_tokens"][open_then] + since[open_then]
        return {
            "request_id": spans["request_id"][open_then],
            "kind": np.full(len(open_then), ItemKind.DECODE, np.int8),
            "num_tokens": np.ones(len(open_then), np.int32),
            "context_tokens": context.astype(np.int32),
        }


def encode_summary(summary: Summary) -> bytes:
    """The summary as JSON for people and programs; the same summary gives the same bytes."""
    return (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode()


def _of_replica(columns: Columns, replica: int) -> Columns:
    here = columns["replica"] == replica
    return {name: column[here] for name, column in columns.items()}


def _by_step(columns: Columns) -> Columns:
    order = np.argsort(columns["step"], kind="stable")
    return {name: column[order] for name, column in columns.items()}


def _rows_of_step(columns: Columns, step: int) -> Columns:
    """Rows of one step out of columns sorted by step."""
    first, last = np.searchsorted(columns["step"], [step, step + 1])
    return {name: column[first:last] for name, column in columns.items()}


def _claim_directory(root: Path, name: str) -> Path:
    """Make `root/<name>-<n>` with the smallest free n above all taken; safe against races."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
    make_folder(root)
    taken = (re.fullmatch(re.escape(stem) + r"-(\d+)", path.name) for path in root.iterdir())
    number = max((int(match[1]) for match in taken if match), default=0)
    while True:
        number += 1
        path = root / f"{stem}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise RunRecordError.of_os_error("create", path, error) from error
        return path


def _remove_empty_run(path: Path) -> None:
    """Take back a directory that never became a run."""
    with suppress(OSError):
        (path / EVENTS).rmdir()
        path.rmdir()


def _npz(arrays: Arrays) -> bytes:
    """An uncompressed .npz; built in memory, so that the disk sees one write.

    Bytes and no `getbuffer()`: CPython 3.12.1 crashes when an error in the middle of writing leaves
    a view and its buffer to the garbage collector.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def _read_arrays(path: Path, names: tuple[str, ...] | None) -> dict[str, NDArray[np.generic]]:
    """The named arrays of an .npz that are in it (all without names)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            there = [name for name in names or archive.files if name in archive]
            for name in there:
                _refuse_giant(archive.zip, name)
            return {name: archive[name] for name in there}
    except OSError as error:
        raise RunRecordError.of_os_error("read", path, error) from error
    except _DAMAGE as error:
        raise RunRecordError(f"{path} is cut short or damaged: {error}") from error


# RuntimeError and NotImplementedError: what zipfile makes of a wrong flag in an entry.
_DAMAGE: Final = (
    zipfile.BadZipFile, ValueError, EOFError, KeyError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip


def _refuse_giant(archive: zipfile.ZipFile, name: str) -> None:
    """Check that an array is no larger than its bytes, before memory is taken for it.

    Raises:
        ValueError: it is, or it is compressed, which no record's arrays are.
    """
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):
            raise ValueError(f"{name} has format {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    if math.prod(shape) * dtype.itemsize > entry.file_size:
        raise ValueError(f"{name} claims {shape} of {dtype} in {entry.file_size} bytes")


def _read_bytes(path: Path) -> bytes:
    """A header or a summary, whole.

    Raises:
        RunRecordError: it cannot be read, or is far larger than any of them.
    """
    try:
        return read_bounded(path)
    except OSError as error:
        raise RunRecordError.of_os_error("read", path, error) from error
