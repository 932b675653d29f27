"""The `workbench` command: one module per subcommand, each a thin function.

Results go to stdout, talk to stderr. Exit codes: 0 done, 1 failure, 2 wrong usage or scenario,
3 a regression or a missed goal, 130 interrupted, 143 terminated. Everything slow to import is
imported inside the functions, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from workbench.cli import (
    calibrate,
    chat,
    compare,
    explain,
    fidelity,
    fuzz,
    init,
    kernels,
    native,
    parity,
    profile,
    report,
    run,
    scenarios,
    schema,
    simulate,
    tui,
    version,
)
from workbench.cli.damaged_build import leave_out_damaged_build
from workbench.cli.failures import FailureReportingGroup, flush_stdout, report_failure

app = typer.Typer(
    name="workbench",
    cls=FailureReportingGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    # typer's own help flag of a group costs an import of pydantic before every subcommand
    add_help_option=False,
)


def _show_help(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(ctx.get_help())
        raise typer.Exit


def _show_version(wanted: bool) -> None:
    if wanted:
        leave_out_damaged_build()
        version.run()
        raise typer.Exit


@app.callback(epilog="`workbench COMMAND --help` explains a command and shows an example.")
def workbench(
    _debug: Annotated[
        bool,
        typer.Option("--debug", envvar="WORKBENCH_DEBUG", help="Show the traceback of a failure."),
    ] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Same as `workbench version`."
        ),
    ] = False,
    _help: Annotated[
        bool,
        typer.Option(
            "--help", "-h", is_eager=True, callback=_show_help, help="Show this message and exit."
        ),
    ] = False,
) -> None:
    """What will an LLM-serving setup do under a given load, and why?"""
    leave_out_damaged_build()


for _command in (
    simulate, run, chat, tui, calibrate, fidelity, parity, fuzz, explain, compare, report,
    scenarios, init, schema, native, version,
):  # fmt: skip
    _name = _command.__name__.rpartition(".")[2]
    app.command(_name, epilog=_command.EPILOG)(_command.run)
app.add_typer(kernels.app, name="kernels")
app.add_typer(profile.app, name="profile")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line `arguments` (default: those of the process) and exit with its code."""
    try:
        app(arguments, prog_name="workbench")
    finally:
        try:
            flush_stdout()
        except OSError as error:
            sys.exit(report_failure(error))
