"""`RUN@STEP` on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cli.failures import UsageError
from workbench.cli.runs import open_run

if TYPE_CHECKING:
    from workbench.record.header import RunHeader
    from workbench.running.execution import DetailName
    from workbench.running.simulate import Simulation


def fork_of(
    text: str, runs_directory: Path, overrides: Sequence[str], detail: DetailName
) -> Simulation:
    """The simulation that `RUN@STEP` or `RUN@REPLICA:STEP` and its overrides ask for.

    Raises:
        UsageError: `text` is neither, or the run has no such replica.
    """
    from workbench.running.fork import ForkPoint, prepare_fork

    found = re.fullmatch(r"(.+)@(?:(\d+):)?(\d+)", text)
    if found is None:
        raise UsageError(
            f"--fork: '{text}' is not RUN@STEP; for example runs/quickstart-1@500, "
            "or @1:500 for a step of replica 1"
        )
    run, replica, step = found.groups()
    point = ForkPoint(step=int(step), replica=int(replica or 0))
    parent = open_run(Path(run), runs_directory)
    count = len(parent.header.replicas)
    if point.replica >= count:
        has = "1 replica (0)" if count == 1 else f"{count} replicas (0 to {count - 1})"
        raise UsageError(f"--fork: the run has {has}, not {point.replica}")
    return prepare_fork(parent, point, overrides, detail)


def fork_sentence(header: RunHeader) -> str:
    """Of which run and step a run is a fork, as a line; nothing of one that is none."""
    if not header.forks:
        return ""
    fork = header.forks[-1]
    changed = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in fork.changes.items())
    return (
        f"Fork of {fork.run} from step {fork.step} of replica {fork.replica} on: "
        f"{changed or 'nothing changed'}\n"
    )
