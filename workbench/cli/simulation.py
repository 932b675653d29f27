"""A simulation from the command line: where its events go, what is said meanwhile, how it stops."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import typer

from workbench.cli.interrupt import stop_on_interrupt
from workbench.cli.progress import ProgressLine
from workbench.run_errors import RunRecordError
from workbench.run_header import RunHeader
from workbench.run_record import JOURNAL, RunReader, RunWriter
from workbench.run_stream import FrameWriter
from workbench.segment_buffer import SegmentBuffer
from workbench.simulate import Simulated, Simulation, run


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
    frames = FrameWriter(sys.stdout.buffer, simulation.header) if outputs.stream else None
    with stop_on_interrupt() as should_stop, _recording(outputs, simulation.header) as writer:
        with ProgressLine(enabled=outputs.talk) as line:
            simulated = _run(simulation, writer, frames, should_stop, line)
        if writer is not None:
            _close_record(writer, simulated)
    if frames is not None:
        frames.summary(simulated.summary, "interrupted" if simulated.stopped_early else "complete")
    if writer is not None:
        _after(writer, simulated, outputs)
    return CarriedOut(simulated.summary, should_stop.exit_code if simulated.stopped_early else 0)


def _run(
    simulation: Simulation,
    writer: RunWriter | None,
    frames: FrameWriter | None,
    should_stop: Callable[[], bool],
    line: ProgressLine,
) -> Simulated:
    """Run into the record and the stream, whichever there are."""
    record = None if writer is None else SegmentBuffer(writer.write_segment)
    sinks = [] if record is None else [record.add]
    if frames is not None:
        sinks.append(frames.write_segment)
    simulated = run(
        simulation,
        sinks,
        live=frames is not None,
        journal=writer is not None and simulation.header.detail != "none",
        should_stop=should_stop,
        on_progress=line.update,
    )
    if record is not None:
        record.flush()
    return simulated


@contextmanager
def _recording(outputs: Outputs, header: RunHeader) -> Iterator[RunWriter | None]:
    """The writer of the record, if there is to be one; a failure is noted in the record."""
    if outputs.runs_directory is None:
        yield None
        return
    writer = RunWriter(outputs.runs_directory, outputs.run_name, header)
    try:
        yield writer
    except BaseException as error:
        if writer.header.status == "running":
            with suppress(RunRecordError):  # the first failure is the one to report
                writer.failed(f"{type(error).__name__}: {error}")
        raise


def _close_record(writer: RunWriter, simulated: Simulated) -> None:
    if simulated.journals and writer.header.detail != "none":
        journals = {str(i): journal.to_array() for i, journal in enumerate(simulated.journals)}
        writer.add_arrays(JOURNAL, journals)
    if simulated.stopped_early is None:
        writer.finish(simulated.summary)
    else:
        writer.interrupted(simulated.summary, simulated.stopped_early)


def _after(writer: RunWriter, simulated: Simulated, outputs: Outputs) -> None:
    """Say where the record is, and make the trace from it."""
    if outputs.trace is not None:
        from workbench.perfetto import write_trace

        write_trace(RunReader(writer.path), outputs.trace)
    if outputs.talk:
        what = "recorded in" if simulated.stopped_early is None else "the partial run is kept in"
        typer.echo(f"{what} {writer.path}", err=True)
