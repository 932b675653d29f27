"""A simulation from the command line: where its events go, what is said meanwhile, how it stops."""

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
from workbench.run_errors import RunRecordError
from workbench.run_header import RunHeader
from workbench.run_record import RunReader, RunWriter
from workbench.run_stream import FrameWriter
from workbench.simulate import Simulated, Simulation, run

LONG_RUN_S: Final = 20.0  # from there on it is worth a minute to compile


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where a simulation goes besides its summary.

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


def carry_out(simulation: Simulation, outputs: Outputs) -> CarriedOut:
    """Run what was prepared, feed the outputs, and give the summary.

    Ctrl-C or SIGTERM ends the run early and keeps it.
    """
    if outputs.talk:
        for note in simulation.header.notes:
            typer.echo(f"note: {note}", err=True)
    started_s = time.monotonic()
    frames = FrameWriter(sys.stdout.buffer, simulation.header) if outputs.stream else None
    with stop_on_interrupt() as should_stop, _recording(outputs, simulation.header) as record:
        with ProgressLine(enabled=outputs.talk) as line:
            simulated = _run(simulation, record, frames, should_stop, line)
        if record is not None:
            record.close(simulated)
    if frames is not None:
        frames.summary(simulated.summary, "interrupted" if simulated.stopped_early else "complete")
    if outputs.talk:
        _recommend_native(time.monotonic() - started_s)
    exit_code = should_stop.exit_code if simulated.stopped_early else 0
    if record is not None:
        _after(record, simulated, outputs)
        exit_code = FAILURE_EXIT_CODE if record.broke_off else exit_code
    return CarriedOut(simulated.summary, exit_code)


def _recommend_native(took_s: float) -> None:
    """Say after a long run in Python what would shorten the next."""
    if took_s > LONG_RUN_S and compiled.active_build() is None:
        hint = "`workbench native` would make runs two to three times as fast"
        typer.echo(f"took {took_s:.0f} s; {hint}", err=True)


def _run(
    simulation: Simulation,
    record: Recording | None,
    frames: FrameWriter | None,
    should_stop: Callable[[], bool],
    line: ProgressLine,
) -> Simulated:
    """Run into the record and the stream, whichever there are."""
    sinks = [] if record is None else [record.add]
    if frames is not None:
        sinks.append(frames.write_segment)
    return run(
        simulation,
        sinks,
        live=frames is not None,
        journal=record is not None and simulation.header.detail != "none",
        should_stop=should_stop,
        on_progress=line.update,
    )


@contextmanager
def _recording(outputs: Outputs, header: RunHeader) -> Iterator[Recording | None]:
    """The record, if there is to be one; a failure of the simulation is noted in it."""
    if outputs.runs_directory is None:
        yield None
        return
    writer = RunWriter(outputs.runs_directory, outputs.run_name, header)
    try:
        yield Recording(writer)
    except BaseException as error:
        if writer.header.status == "running":
            with suppress(RunRecordError):  # the first failure is the one to report
                writer.failed(f"{type(error).__name__}: {error}")
        raise


def _after(record: Recording, simulated: Simulated, outputs: Outputs) -> None:
    """Say where the record is, and make the trace from it."""
    if record.broke_off:
        if outputs.trace is not None:
            typer.echo(f"without the record there is no {outputs.trace}", err=True)
        return
    path = record.writer.path
    if outputs.trace is not None:
        from workbench.perfetto import write_trace

        write_trace(RunReader(path), outputs.trace)
    if outputs.talk:
        what = "recorded in" if simulated.stopped_early is None else "the partial run is kept in"
        typer.echo(f"{what} {path}", err=True)
