"""`workbench explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """\b
Examples:
  workbench explain runs/quickstart-1
  workbench explain runs/quickstart-1 --request 17"""


def run(
    run_directory: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory, as `workbench simulate` names it.")
    ],
    request: Annotated[
        int | None,
        typer.Option("--request", "-r", metavar="ID", min=0, help="Explain this request only."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with times in ns.")] = False,
) -> None:
    """Say where time went and why requests waited.

    The causes of a latency sum to it exactly.
    """
    from workbench.cli.json_text import to_json
    from workbench.cli.runs import open_run
    from workbench.explain import (
        RequestExplanation,
        RunExplanation,
        explain_request,
        explain_run,
        render,
    )

    recorded = open_run(run_directory)
    explanation: RunExplanation | RequestExplanation
    if request is None:
        explanation = explain_run(recorded)
    else:
        explanation = explain_request(recorded, request)
    typer.echo(to_json(explanation) if as_json else render(explanation), nl=False)
