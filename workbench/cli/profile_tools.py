"""`workbench profile` with Nsight's tools: run them where they are, and read what they wrote.

Where they are not, the commands to type elsewhere are the result, and stand on stdout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from workbench.profile.ncu_report import NcuKernel
    from workbench.profile.nsight import Command
    from workbench.profile.recording import StepRequest
    from workbench.profile.what_ran import WhatRan

_LIMIT_S = 580.0
_NAMES = {"nsys": "Nsight Systems", "ncu": "Nsight Compute"}


def arguments_of(request: StepRequest) -> list[str]:
    """The arguments with which `workbench profile step` runs the same."""
    found = _options(
        ("--step", request.text), ("--model", request.model), ("--device", request.device),
        ("--dtype", request.dtype), ("--steps", request.steps), ("--layers", request.layers),
    )  # fmt: skip
    if request.load_format != "auto":
        found += ["--load-format", request.load_format]
    if request.eager:
        found.append("--eager")
    return found


def _import_arguments(request: StepRequest, only: str | None = None) -> list[str]:
    """The arguments with which `workbench profile import` knows what ran."""
    if request.model is None:
        return []
    found = _options(
        ("--model", request.model), ("--step", request.text), ("--layers", request.layers),
        ("--dtype", request.dtype), ("--only", only),
    )  # fmt: skip
    return [*found, "--eager"] if request.eager else found


def _options(*options: tuple[str, object]) -> list[str]:
    """Those that have a value, as they are typed."""
    return [word for name, value in options if value is not None for word in (name, str(value))]


def run_nsys(request: StepRequest, output: Path, *, as_json: bool) -> None:
    """Record and read a step with Nsight Systems; without it, the commands to type."""
    from workbench.profile.nsight import find_tool, nsys_commands, run_tool
    from workbench.record.result_folder import make_folder

    nsys, name = find_tool("nsys"), str(output / "step")
    back = _import_arguments(request)
    if nsys is None:
        commands = nsys_commands(arguments_of(request), name, back, python="python")
        _give(commands, "nsys", as_json=as_json)
        return
    commands = nsys_commands(arguments_of(request), name, back, nsys=nsys)
    _tell(commands)
    make_folder(output)
    for command in commands[:2]:
        run_tool(command, _LIMIT_S)
    read_report(output / "step.sqlite", _ran(request), 12, as_json=as_json)


def run_ncu(request: StepRequest, output: Path, only: str | None, *, as_json: bool) -> None:
    """Read the counters of a step with Nsight Compute; without it, the command to type."""
    commands, here = _ncu_commands(request, output, only)
    if not here:
        _give(commands, "ncu", as_json=as_json)
        return
    log = _run_ncu(commands, output)
    read_report(log, _ran(request), 12, as_json=as_json, only=only)


def counters_of(request: StepRequest, output: Path) -> list[tuple[str, NcuKernel]] | None:
    """(class, counters) of each kernel of a step; None: there is no ncu, and it was said."""
    from workbench.profile.ncu_report import classes_of, read_ncu

    commands, here = _ncu_commands(request, output, None)
    if not here:
        _tell(commands)
        _missing("ncu")
        return None
    kernels = read_ncu(_run_ncu(commands, output))
    return list(zip(classes_of(kernels), kernels, strict=True))


def _ncu_commands(
    request: StepRequest, output: Path, only: str | None
) -> tuple[list[Command], bool]:
    """What reads the counters of a step, and what reads them back; whether there is an ncu."""
    from workbench.profile.nsight import Command, find_tool, known_metrics, ncu_command

    log = output / "ncu.csv"
    ncu = find_tool("ncu")
    metrics = known_metrics(ncu) if ncu else None
    command = (
        ncu_command(arguments_of(request), log, only=only, python="python")
        if ncu is None or metrics is None
        else ncu_command(arguments_of(request), log, metrics=metrics, only=only, ncu=ncu)
    )
    back = ("workbench", "profile", "import", str(log), *_import_arguments(request, only))
    return [command, Command(back)], ncu is not None


def _run_ncu(commands: Sequence[Command], output: Path) -> Path:
    """Its CSV."""
    from workbench.profile.nsight import run_tool
    from workbench.record.result_folder import make_folder

    _tell(commands)
    make_folder(output)
    run_tool(commands[0], _LIMIT_S)
    return output / "ncu.csv"


def _give(commands: Sequence[Command], tool: str, *, as_json: bool) -> None:
    """Commands as the result."""
    if as_json:
        said = {"schema": "profile_commands/v1", "tool": tool, "commands": [*map(str, commands)]}
        typer.echo(json.dumps(said, indent=1))
    else:
        typer.echo("\n".join(map(str, commands)))
    _missing(tool)


def _tell(commands: Sequence[Command]) -> None:
    """Commands beside the result."""
    for command in commands:
        typer.echo(f"$ {command}", err=True)


def _missing(tool: str) -> None:
    name = _NAMES[tool]
    typer.echo(
        f"{tool} ({name}) is not installed here: run these commands where it is; the last one "
        "reads back what it wrote",
        err=True,
    )


def _ran(request: StepRequest) -> WhatRan:
    from workbench.profile.what_ran import WhatRan

    return WhatRan(
        model=request.model, layers=request.layers, dtype=request.dtype, step=request.text,
        eager=request.eager,
    )  # fmt: skip


def read_report(
    report: Path, ran: WhatRan, kernels: int, *, as_json: bool, only: str | None = None
) -> None:
    """`workbench profile import`.

    Args:
        report: of a tool.
        ran: what is said of it.
        kernels: to list.
        as_json: instead of text.
        only: the class of which there are counters, where others are left out; None: of all.
    """
    from workbench.cli.profile_options import check_class
    from workbench.cli.profile_work import analysed
    from workbench.profile.ncu_report import is_ncu
    from workbench.profile.nsys_report import is_sqlite, read_nsys
    from workbench.profile.timeline_text import timeline_text
    from workbench.profile.trace import read_trace

    has_counters = is_ncu(report)
    check_class(only, with_ncu=has_counters)
    if has_counters:
        _read_counters(report, ran, only, as_json=as_json)
        return
    trace = read_nsys(report) if is_sqlite(report) else read_trace(report)
    found = analysed(trace, ran)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        typer.echo(timeline_text(found, kernels))


def _read_counters(report: Path, ran: WhatRan, only: str | None, *, as_json: bool) -> None:
    from workbench.profile.counted_work import counted_work
    from workbench.profile.counters_text import counters_text
    from workbench.profile.ncu_report import classes_of, read_ncu
    from workbench.profile.traced_model import spec_of

    kernels = read_ncu(report)
    kinds = classes_of(kernels)
    spec, shape = spec_of(ran.about()), replace(ran, eager=True).shape()  # as ncu always runs it
    work = counted_work(spec, shape) if spec and shape else {}
    if only is not None:  # kernels of other classes may be there, but not all of them
        work = {kind: one for kind, one in work.items() if kind == only}
    if as_json:
        rows = [{"class": kind, **asdict(one)} for kind, one in zip(kinds, kernels, strict=True)]
        counted = {kind: asdict(one) for kind, one in work.items()}
        said = {"schema": "profile_counters/v1", "kernels": rows, "counted": counted}
        typer.echo(json.dumps(said, indent=1))
    else:
        typer.echo(counters_text(kernels, kinds, work))
