"""`RUN@STEP` on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cli.failures import UsageError
from workbench.cli.runs import open_run

if TYPE_CHECKING:
    from workbench.simulate import DetailName, Simulation


def fork_of(
    text: str, runs_directory: Path, overrides: Sequence[str], detail: DetailName
) -> Simulation:
    """The simulation that `RUN@STEP` or `RUN@REPLICA:STEP` and its overrides ask for.

    Raises:
        UsageError: `text` is neither.
    """
    from workbench.fork import ForkPoint, prepare_fork

    found = re.fullmatch(r"(.+)@(?:(\d+):)?(\d+)", text)
    if found is None:
        raise UsageError(
            f"--fork: '{text}' is not RUN@STEP; for example runs/quickstart-1@500, "
            "or @1:500 for a step of replica 1"
        )
    run, replica, step = found.groups()
    point = ForkPoint(step=int(step), replica=int(replica or 0))
    return prepare_fork(open_run(Path(run), runs_directory), point, overrides, detail)
