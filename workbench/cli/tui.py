"""`workbench tui`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """\b
Examples:
  workbench tui
  workbench tui quickstart
  workbench tui runs/quickstart-1
  workbench tui --ascii --slow-link"""


def run(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|SCENARIO",
            help="A recorded run to open, or a scenario to select; default: the list of both.",
        ),
    ] = None,
    ascii_only: Annotated[bool, typer.Option("--ascii", help="Draw with ASCII alone.")] = False,
    fps: Annotated[int, typer.Option(min=1, max=60, help="Frames per second at most.")] = 30,
    slow_link: Annotated[
        bool, typer.Option("--slow-link", help="Send little: 256 colours, 8 frames per second.")
    ] = False,
) -> None:
    """Browse, run, watch, go back in time and compare.

    All in the terminal. Press ? for the keys and for how to read a screen.
    """
    import os
    import sys

    from workbench.cli.failures import UsageError

    if not (sys.stdin.isatty() and sys.stderr.isatty()):  # Textual draws on stderr
        raise UsageError("workbench tui needs a terminal; without one, use simulate and explain")
    if slow_link:
        os.environ.setdefault("TEXTUAL_COLOR_SYSTEM", "256")  # read when Textual is imported
        fps = min(fps, 16)  # and every second of these is left out
    run_path, scenario = _resolved(target)
    from workbench.tui.start import application, start

    start(application(run_path, scenario, ascii_only=ascii_only, fps=fps, slow_link=slow_link))


def _resolved(target: str | None) -> tuple[Path | None, str | None]:
    """The run or the scenario that a name means; what is neither is an error before we draw.

    Raises:
        RunRecordError: a directory that is no run.
        ScenarioErrors: no run of that name, and no scenario.
    """
    from workbench.cli.runs import RUNS_DIRECTORY, open_run

    if target is None:
        return None, None
    path = Path(target)
    if path.is_dir() or (RUNS_DIRECTORY / path).is_dir():
        return open_run(path).path, None
    from workbench.scenario.source import scenario_text

    scenario_text(target)
    return None, str(path)
