"""`workbench native`."""

from __future__ import annotations

from typing import Annotated

import typer

EPILOG = """\b
Example:
  workbench native            compile once, about a minute
  workbench native --remove   back to Python"""


def run(
    remove: Annotated[bool, typer.Option("--remove", help="Delete all builds.")] = False,
) -> None:
    """Compile scheduler and simulator, to run faster.

    Results are the same; a simulation takes a half to a third of the time.

    Takes mypy, setuptools and a C compiler. Runs use the build by themselves, until the sources
    change; `workbench version` says whether one is in use.
    """
    from workbench import native_build

    if remove:
        typer.echo(f"removed {native_build.remove()} builds")
        return
    typer.echo("compiling, about a minute ...", err=True)
    typer.echo(f"built {native_build.build()}")
