"""`workbench compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """\b
Examples:
  workbench compare runs/quickstart-1 runs/quickstart-2
  workbench compare baseline runs/my-3 --fail-over 5%"""


def run(
    a: Annotated[Path, typer.Argument(metavar="A", help="Run to compare with.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Run to judge.")],
    fail_over: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT",
            help="Exit with 3 if a metric of B is worse than A's by more than this, as 5%.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with units in names.")
    ] = False,
) -> None:
    """Compare two runs.

    First what was different, then metrics with noise, then the first decision that differs.
    """
    from workbench.analysis.compare import compare_runs, render
    from workbench.cli.failures import REGRESSION_EXIT_CODE
    from workbench.cli.json_text import to_json
    from workbench.cli.percent import parse_percent
    from workbench.cli.runs import open_run

    limit_percent = None if fail_over is None else parse_percent("--fail-over", fail_over)
    comparison = compare_runs(open_run(a), open_run(b), limit_percent)
    typer.echo(to_json(comparison) if as_json else render(comparison), nl=False)
    if comparison.regressed:
        raise typer.Exit(REGRESSION_EXIT_CODE)
