"""`workbench init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """\b
Examples:
  workbench init my.yaml
  workbench init chat.yaml --template prefix_cache_chat"""


def run(
    file: Annotated[Path, typer.Argument(help="File to write; - is stdout.")] = Path(
        "scenario.yaml"
    ),
    template: Annotated[
        str | None,
        typer.Option(
            "--template", "-t", metavar="NAME", help="Copy this shipped scenario instead."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE if it exists.")] = False,
) -> None:
    """Write a commented scenario to start from.

    It holds every key with its default and meaning.
    """
    from workbench.cli.failures import UsageError
    from workbench.record.atomic_file import write_atomic

    text = _template_text(file) if template is None else _shipped_text(template)
    if str(file) == "-":
        typer.echo(text, nl=False)
        return
    if file.exists() and not force:
        raise UsageError(f"{file} exists; give another name, or --force to overwrite it")
    write_atomic(file, text.encode())
    typer.echo(f"wrote {file}; next: workbench simulate {file}", err=True)


def _template_text(file: Path) -> str:
    """The template, named after the file as far as a scenario's name may be."""
    import re

    from workbench.scenario.template import scenario_template

    name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).lstrip("._-")
    return scenario_template(name) if name else scenario_template()


def _shipped_text(name: str) -> str:
    from workbench.cli.failures import UsageError
    from workbench.scenario.errors import did_you_mean, listed
    from workbench.scenario.source import shipped_names, shipped_text

    names = shipped_names()
    if name not in names:
        hint = did_you_mean(name, names) or f"there are {listed(names)}"
        raise UsageError(f"no shipped scenario `{name}`; {hint}")
    return shipped_text(name)
