"""Finding a recorded run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.run_record import RunReader

RUNS_DIRECTORY = Path("runs")


def open_run(path: Path, runs_directory: Path = RUNS_DIRECTORY) -> RunReader:
    """The run at `path`, or of that name in the directory of runs.

    Raises:
        RunRecordError: there is no readable run.
    """
    from workbench.run_record import RunReader

    named = runs_directory / path
    return RunReader(named if not path.exists() and named.is_dir() else path)
