"""Starting the interface on a run, on a scenario, or on the list of both."""

from __future__ import annotations

from pathlib import Path

from workbench.record.errors import RunRecordError
from workbench.tui.app import WorkbenchApp
from workbench.tui.opened_run import OpenedRun


def application(
    run: Path | None = None,
    scenario: str | None = None,
    *,
    ascii_only: bool = False,
    fps: int = 30,
    slow_link: bool = False,
) -> WorkbenchApp:
    """The application, on a recorded run if one is given, else on the list.

    Raises:
        RunRecordError: the directory is no run, or a damaged one.
    """
    opened = None if run is None else OpenedRun.recorded(run)
    return WorkbenchApp(
        opened, scenario=scenario, ascii_only=ascii_only, fps=fps, slow_link=slow_link
    )


def start(app: WorkbenchApp) -> None:
    """Show the interface until it is left.

    Raises:
        RunRecordError: it broke off; Textual has shown why.
    """
    app.run()
    if app.return_code:
        raise RunRecordError("the interface broke off")
