"""`workbench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

EPILOG = """\b
Examples:
  workbench report runs/quickstart-1
  workbench report runs/quickstart-1 --format svg --separate --out pictures
  workbench report runs/quickstart-1 --perfetto trace.json"""


def run(
    run_directory: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory, as `workbench simulate` names it.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIRECTORY", help="Where pictures go; default: the run directory."),
    ] = None,
    picture_format: Annotated[
        Literal["png", "svg", "both"], typer.Option("--format", help="Format of the pictures.")
    ] = "both",
    separate: Annotated[
        bool, typer.Option("--separate", help="Also draw each panel on its own.")
    ] = False,
    perfetto: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a trace for ui.perfetto.dev to FILE instead of pictures."
        ),
    ] = None,
    max_requests: Annotated[
        int, typer.Option(min=0, help="Requests in the trace at most, the first by arrival.")
    ] = 2_000,
    max_steps: Annotated[
        int, typer.Option(min=1, help="Steps in the trace at most, the first ones.")
    ] = 100_000,
) -> None:
    """Draw a run, or write it as a trace.

    Pictures show batch composition, KV memory, latencies and the queue. The names of the files
    written go to stdout.
    """
    from workbench.cli.failures import UsageError, refuse_stdout
    from workbench.cli.runs import open_run

    refuse_stdout("--perfetto", perfetto)
    if out is not None and out.suffix in (".png", ".svg") and not out.is_dir():
        kind = out.suffix.removeprefix(".")
        raise UsageError(f"--out {out} is to be a directory; --format {kind} draws no other format")
    recorded = open_run(run_directory)
    if perfetto is None:
        from workbench.reports.report import ImageFormat, draw_report

        both: tuple[ImageFormat, ...] = ("png", "svg")
        formats = both if picture_format == "both" else (picture_format,)
        for path in draw_report(recorded, out or recorded.path, formats, separate):
            typer.echo(path)
        return
    from workbench.reports.perfetto import write_trace

    size = write_trace(recorded, perfetto, max_requests, max_steps)
    typer.echo(perfetto)
    typer.echo(
        f"{size.steps:,} of {size.total_steps:,} steps, "
        f"{size.requests:,} of {size.total_requests:,} requests",
        err=True,
    )
