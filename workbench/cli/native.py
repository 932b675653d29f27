"""`workbench native`."""

from __future__ import annotations

from typing import Annotated

import typer

EPILOG = """\b
Example:
  workbench native                     compile once, about a minute
  workbench native --extensions-only   only ops and prefix cache in C++ and CUDA, half a minute
  workbench native --remove            back to Python"""


def run(
    remove: Annotated[bool, typer.Option("--remove", help="Delete all builds.")] = False,
    extensions_only: Annotated[
        bool, typer.Option("--extensions-only", help="Leave scheduler and simulator as Python.")
    ] = False,
) -> None:
    """Compile scheduler and simulator, to run faster.

    Results are the same; a long simulation takes half to two thirds of the time.

    Takes mypy, setuptools and a C compiler. Runs use the build by themselves, until the sources
    change; `workbench version` says whether one is in use. With ninja, pybind11 and g++ it also
    builds what is written in C++ and CUDA (docs/kernel_lab.md), and measures where that prefix
    cache is faster than Python's: there it is used, and `workbench version` says so.
    """
    from workbench import native_build

    def say(line: str) -> None:
        typer.echo(line, err=True)

    if remove:
        typer.echo(f"removed {native_build.remove(say)} builds")
        return
    if not extensions_only:
        say("compiling, about a minute ...")
        typer.echo(f"built {native_build.build(say)}")
    from workbench.native_extensions import build_extensions  # loads the core

    for line in build_extensions(required=extensions_only):
        typer.echo(line)
