"""The beginning of a trace file, kept beside the cells, so that judging needs no other file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from workbench.fidelity.errors import FidelityError
from workbench.fidelity.loads import TRACE_ROWS
from workbench.record.atomic_file import write_atomic
from workbench.workload.trace_lines import read_lines
from workbench.workload.traces import read_trace

_FILE: Final = "trace-window.txt"


@dataclass(frozen=True, slots=True)
class TraceWindow:
    """A piece of a trace.

    Attributes:
        path: its file.
        request_rate: mean requests a second in it.
    """

    path: Path
    request_rate: float


def find_window(folder: Path, trace: Path | None) -> TraceWindow | None:
    """The window of a folder; made of `trace`, if that is given.

    Raises:
        FidelityError: the folder has one of another trace, or all its requests come at once.
        TraceError: the trace cannot be read.
    """
    path = folder / _FILE
    if trace is not None:
        text = _beginning(trace)
        if path.exists() and path.read_bytes() != text:
            raise FidelityError(
                f"{path} is of another trace than {trace}: name another --output-dir"
            )
        read_trace(trace, limit=TRACE_ROWS)  # refuse it before anything is written
        if not path.exists():
            write_atomic(path, text)
    if not path.exists():
        return None
    arrivals = read_trace(path).arrival_ns
    if len(arrivals) < 2 or arrivals[-1] == 0:
        raise FidelityError(f"{path}: all requests come at once, which has no rate to scale")
    return TraceWindow(path, (len(arrivals) - 1) / (float(arrivals[-1]) / 1e9))


def _beginning(trace: Path) -> bytes:
    """The first lines of a trace, and its header if it has one."""
    lines: list[bytes] = []
    for block in read_lines(trace):
        lines += block.texts
        if len(lines) > TRACE_ROWS:
            break
    header = 0 if lines and lines[0].lstrip().startswith(b"{") else 1
    return b"\n".join(lines[: TRACE_ROWS + header]) + b"\n"
