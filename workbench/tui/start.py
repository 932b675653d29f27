"""Starting the interface on a run, on a scenario, or on the list of both."""

from __future__ import annotations

from pathlib import Path

from workbench.cli.runs import RUNS_DIRECTORY, open_run
from workbench.run_errors import RunRecordError
from workbench.scenario_source import scenario_text
from workbench.tui.app import WorkbenchApp
from workbench.tui.opened_run import OpenedRun


def application(target: str | None, *, ascii_only: bool, fps: int, slow_link: bool) -> WorkbenchApp:
    """The application for what the command line names.

    Raises:
        RunRecordError: it names a directory that is no run, or a damaged one.
        ScenarioErrors: it names neither a run nor a scenario.
    """
    run, scenario = None, None
    if target is not None and is_run(Path(target)):
        run = OpenedRun.recorded(open_run(Path(target)).path)
    elif target is not None:
        scenario_text(target)
        scenario = target
    return WorkbenchApp(run, scenario=scenario, ascii_only=ascii_only, fps=fps, slow_link=slow_link)


def is_run(path: Path) -> bool:
    """Whether a name means a recorded run: a directory, here or among the runs."""
    return path.is_dir() or (RUNS_DIRECTORY / path).is_dir()


def start(target: str | None, *, ascii_only: bool, fps: int, slow_link: bool) -> None:
    """Show the interface until it is left. Raises as `application`."""
    app = application(target, ascii_only=ascii_only, fps=fps, slow_link=slow_link)
    app.run()
    if app.return_code:
        raise RunRecordError("the interface broke off")
