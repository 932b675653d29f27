"""Finding a recorded run."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.record.errors import RunRecordError

if TYPE_CHECKING:
    from workbench.record.run_record import RunReader

RUNS_DIRECTORY = Path("runs")
_NEWEST = 5  # that an error names


def open_run(path: Path, runs_directory: Path = RUNS_DIRECTORY) -> RunReader:
    """The run at `path`, or of that name in the directory of runs.

    Raises:
        RunRecordError: there is no readable run.
    """
    from workbench.record.run_record import RunReader

    if path.exists():
        return RunReader(path)
    named = runs_directory / path
    if not named.is_dir():
        raise RunRecordError(f"there is no run {path}{_there_are(path, runs_directory)}")
    return RunReader(named)


def _there_are(path: Path, runs_directory: Path) -> str:
    """What may have been meant: the likest name, or else the newest runs."""
    runs = [folder.parent for folder in runs_directory.glob("*/header.json")]
    runs.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    if not runs:
        return f", and none in {runs_directory}: `workbench simulate quickstart` records one"
    close = get_close_matches(path.name, [folder.name for folder in runs], n=1)
    if close:
        return f": did you mean {runs_directory / close[0]}?"
    return "; the newest: " + ", ".join(str(folder) for folder in runs[:_NEWEST])
