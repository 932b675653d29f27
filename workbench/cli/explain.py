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
        str | None,
        typer.Option(
            "--request", "-r", metavar="ID", help="Explain this request only, as 17 or r17."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with times in ns.")] = False,
) -> None:
    """Say where time went and why requests waited.

    The causes of a latency sum to it exactly.
    """
    from workbench.analysis.explain import (
        RequestExplanation,
        RunExplanation,
        explain_request,
        explain_run,
        render,
    )
    from workbench.cli.json_text import to_json
    from workbench.cli.runs import open_run

    wanted = None if request is None else _request_id(request)
    recorded = open_run(run_directory)
    explanation: RunExplanation | RequestExplanation
    if wanted is None:
        explanation = explain_run(recorded)
    else:
        explanation = explain_request(recorded, wanted)
    typer.echo(to_json(explanation) if as_json else render(explanation), nl=False)


def _request_id(text: str) -> int:
    """The number of a request, which everything that is printed writes with an r before it.

    Raises:
        UsageError: it is none.
    """
    from workbench.cli.failures import UsageError

    digits = text.removeprefix("r")
    if not (digits.isascii() and digits.isdigit()):
        raise UsageError(f"--request {text}: not the number of a request, such as 17 or r17")
    return int(digits)
