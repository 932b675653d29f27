"""`workbench scenarios`."""

from __future__ import annotations

import typer

EPILOG = """\b
Example:
  workbench scenarios
  workbench simulate quickstart"""


def run() -> None:
    """List the shipped scenarios and what they teach."""
    from workbench.scenario.source import shipped_scenarios

    shipped = shipped_scenarios()
    width = max(len(scenario.name) for scenario in shipped)
    for scenario in shipped:
        typer.echo(f"{scenario.name:<{width}}  {scenario.lesson}")
