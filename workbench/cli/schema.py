"""`workbench schema`."""

from __future__ import annotations

import typer

EPILOG = """\b
Example, for completion and checks in an editor:
  workbench schema > scenario.schema.json
and as the first line of a scenario:
  # yaml-language-server: $schema=./scenario.schema.json"""


def run() -> None:
    """Print the JSON Schema of a scenario file."""
    import json

    from workbench.scenario.schema import scenario_json_schema

    typer.echo(json.dumps(scenario_json_schema(), indent=2, ensure_ascii=False))
