"""How a failed command ends: a message on stderr, an exit code, and no traceback."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

FAILURE_EXIT_CODE = 1
USAGE_EXIT_CODE = 2
REGRESSION_EXIT_CODE = 3
_ROOMS = frozenset({"engine", "simulator", "workbench"})


class UsageError(Exception):
    """The command line asks for something that makes no sense; the text says what would."""


def refuse_stdout(option: str, file: Path | None) -> None:
    """Refuse `-` as the name of a file that cannot go to stdout.

    Raises:
        UsageError: it is `-`.
    """
    if file is not None and str(file) == "-":
        raise UsageError(f"{option} cannot go to stdout: give the name of a file")


class FailureReportingGroup(TyperGroup):
    """Runs a subcommand and turns an exception into a message and an exit code.

    Exceptions defined in this project are written for its users: their text is the message. Any
    other exception but an `OSError` or a `MemoryError` is a defect and says so.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; the one failure that can precede a command is unwritable help."""
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            sys.exit(report_failure(error))

    def invoke(self, ctx: Any) -> Any:  # ctx: click's Context, which typer keeps to itself
        """Run the subcommand that `ctx` names."""
        try:
            result = super().invoke(ctx)
            flush_stdout()
        except typer.TyperException as error:
            _say_where_models_go(error)
            raise
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise  # typer ends a closed pipe quietly, with exit code 1
        except Exception as error:
            if ctx.params["_debug"]:
                raise
            raise typer.Exit(report_failure(error)) from None
        return result


def _say_where_models_go(error: Exception) -> None:
    """What stands where a command takes nothing, but has --model, was meant as one."""
    message, context = getattr(error, "message", ""), getattr(error, "ctx", None)
    if context is None or not message.startswith("Got unexpected extra argument"):
        return
    if any("--model" in parameter.opts for parameter in context.command.params):
        error.message = f"{message}: a model goes to --model"  # type: ignore[attr-defined]


def report_failure(error: Exception) -> int:
    """Say on stderr what went wrong; return the exit code."""
    from workbench.scenario.errors import ScenarioErrors
    from workbench.workload.trace_errors import TooLongError

    with suppress(OSError):
        flush_stdout()
    if not isinstance(error, BrokenPipeError):
        typer.echo(failure_message(error), err=True)
    wrong_usage = isinstance(error, UsageError | ScenarioErrors | TooLongError)
    return USAGE_EXIT_CODE if wrong_usage else FAILURE_EXIT_CODE


def failure_message(error: Exception) -> str:
    """What to print on stderr for `error`."""
    text = str(error)
    if isinstance(error, OSError):
        return f"error: {_os_error_text(error)}"
    if isinstance(error, MemoryError):
        wanted = f": {text}" if text else ""
        return f"error: not enough memory{wanted}; ask for fewer requests"
    if type(error).__module__.partition(".")[0] in _ROOMS:
        return text if text.startswith("error") else f"error: {text}"
    return (
        f"error: this is a defect of workbench: {type(error).__name__}: {text}\n"
        "Run the command again with `workbench --debug ...` and report the traceback."
    )


def _os_error_text(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{reason}: {error.filename}" if error.filename else reason


def flush_stdout() -> None:
    """Write out what stdout buffers.

    Raises:
        OSError: it cannot be written. It is then discarded, so that the next flush, at the latest
            the interpreter's own at exit, does not fail again.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
