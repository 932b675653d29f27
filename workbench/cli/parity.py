"""`workbench parity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """\b
Example:
  workbench run engine_on_cpu --load-format dummy && workbench parity runs/engine_on_cpu-1"""


def run(
    recorded: Annotated[Path, typer.Argument(metavar="RUN", help="A recorded run of the engine.")],
    runs_dir: Annotated[Path, typer.Option(help="Where runs are found by name.")] = Path("runs"),
) -> None:
    """Check that the simulator decides as a run of the engine did.

    The simulator's clients, scheduler and text ends get the times of the record and nothing else.
    Every plan must be the engine's; the first that is not is an error.
    """
    from workbench.cli.runs import open_run
    from workbench.running.parity import check_parity

    found = open_run(recorded, runs_dir)
    same = check_parity(found)
    typer.echo(
        f"{found.path}: {same.steps:,} steps, {same.requests:,} requests, {same.aborts:,} aborts "
        "and every text's end, all as the simulator decides them"
    )
