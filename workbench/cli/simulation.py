"""A run from the command line: where its events go, what is said meanwhile, how it stops."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import typer

from engine import compiled
from workbench.cli.failures import FAILURE_EXIT_CODE
from workbench.cli.interrupt import stop_on_interrupt
from workbench.cli.progress import ProgressLine
from workbench.cli.recording import Recording
from workbench.record.errors import RunRecordError
from workbench.record.header import RunHeader
from workbench.record.run_record import RunReader, RunWriter
from workbench.record.stream import RECORDED_IN, FrameWriter, MarkFrame
from workbench.running.execution import Ended, Runnable

LONG_RUN_S: Final = 20.0  # from there on it is worth a minute to compile


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where a run goes besides its summary.

    Attributes:
        runs_directory: of the record; None: no record.
        run_name: of the record.
        stream: whether frames go to stdout.
        trace: file for a Perfetto trace of the recorded run, or None.
        talk: whether to show progress and remarks on stderr.
    """

    runs_directory: Path | None
    run_name: str
    stream: bool
    trace: Path | None
    talk: bool


class CarriedOut(NamedTuple):
    """A summary, and the exit code if the run did not end as it should; else 0."""

    summary: dict[str, Any]
    exit_code: int


def carry_out(ready: Runnable, outputs: Outputs) -> CarriedOut:
    """Run what was prepared, feed the outputs, and give the summary.

    Ctrl-C or SIGTERM ends the run early and keeps it.

    Raises:
        Exception: what broke the run; the record has been kept as far as it goes.
    """
    if outputs.talk:
        for note in ready.header.notes:
            typer.echo(f"note: {note}", err=True)
    started_s = time.monotonic()
    frames = FrameWriter(sys.stdout.buffer, ready.header) if outputs.stream else None
    with stop_on_interrupt() as should_stop, _recording(outputs, ready.header) as record:
        if frames is not None and record is not None:
            frames.mark(_where_recorded(record))
        real_time = ready.header.kind == "engine"
        with ProgressLine(enabled=outputs.talk, real_time=real_time) as line:
            ended = _run(ready, record, frames, should_stop, line)
        if record is not None:
            record.close(ended)
    for fault in ended.faults:
        typer.echo(f"{'error' if ended.errors else 'note'}: {fault}", err=True)
    if ended.failure is not None or ended.summary is None:
        _say_where_partial_run_is(record, outputs)
        raise ended.failure or RuntimeError(ended.stopped_early)
    if frames is not None:
        frames.summary(ended.summary, "interrupted" if ended.stopped_early else "complete")
    if outputs.talk and ready.header.kind == "simulation":
        _recommend_native(time.monotonic() - started_s)
    exit_code = FAILURE_EXIT_CODE if ended.errors else 0
    if ended.stopped_early:
        exit_code = should_stop.exit_code
    if record is not None:
        _after(record, ended, outputs)
        exit_code = FAILURE_EXIT_CODE if record.broke_off else exit_code
    return CarriedOut(ended.summary, exit_code)


def _where_recorded(record: Recording) -> MarkFrame:
    path = str(record.writer.path)
    return MarkFrame(t_ns=0, severity="info", code=RECORDED_IN, text=path)


def _recommend_native(took_s: float) -> None:
    """Say after a long run in Python what would shorten the next."""
    if took_s > LONG_RUN_S and compiled.active_build() is None:
        hint = "`workbench native` would make runs 1.5 to 2 times as fast"
        typer.echo(f"took {took_s:.0f} s; {hint}", err=True)


def _run(
    ready: Runnable,
    record: Recording | None,
    frames: FrameWriter | None,
    should_stop: Callable[[], bool],
    line: ProgressLine,
) -> Ended:
    """Run into the record and the stream, whichever there are."""
    sinks = [] if record is None else [record.add]
    if frames is not None:
        sinks.append(frames.write_segment)
    return ready.run(
        sinks,
        live=frames is not None,
        journal=record is not None and ready.header.detail != "none",
        should_stop=should_stop,
        on_progress=line.update,
    )


@contextmanager
def _recording(outputs: Outputs, header: RunHeader) -> Iterator[Recording | None]:
    """The record, if there is to be one; a failure of the run is noted in it."""
    if outputs.runs_directory is None:
        yield None
        return
    writer = RunWriter(outputs.runs_directory, outputs.run_name, header)
    try:
        yield Recording(writer)
    except BaseException as error:
        if writer.header.status == "running":
            with suppress(RunRecordError):  # the first failure is the one to report
                writer.failed(f"{type(error).__name__}: {error}".removesuffix(": "))
        raise


def _say_where_partial_run_is(record: Recording | None, outputs: Outputs) -> None:
    if record is not None and not record.broke_off and outputs.talk:
        typer.echo(f"the partial run is kept in {record.writer.path}", err=True)


def _after(record: Recording, ended: Ended, outputs: Outputs) -> None:
    """Say where the record is, and make the trace from it."""
    if record.broke_off:
        if outputs.trace is not None:
            typer.echo(f"without the record there is no {outputs.trace}", err=True)
        return
    path = record.writer.path
    if outputs.trace is not None:
        from workbench.reports.perfetto import write_trace

        write_trace(RunReader(path), outputs.trace)
    if ended.stopped_early is not None:
        _say_where_partial_run_is(record, outputs)
    elif outputs.talk:
        typer.echo(f"recorded in {path}", err=True)
