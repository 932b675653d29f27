"""`workbench fuzz`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from workbench.fuzz.campaign import Tally
    from workbench.fuzz.explore import Failure

EPILOG = """\b
Examples:
  workbench fuzz                              a minute with a fresh seed
  workbench fuzz --budget 8h --jobs 2         a night
  workbench fuzz --seed 7 --runs 1            one run again
  workbench fuzz --replay fuzz-scheduler-7.ops.json
  workbench fuzz --mutants                    how many planted bugs it finds, and how fast"""

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SHRINK_S = 20.0


def run(
    context: typer.Context,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the first run; the others count on. [fresh]")
    ] = None,
    budget: Annotated[str, typer.Option(metavar="TIME", help="Such as 60s, 5m or 8h.")] = "60s",
    runs: Annotated[
        int | None, typer.Option(min=1, help="At most so many runs. [as many as time allows]")
    ] = None,
    faults: Annotated[
        str | None, typer.Option(metavar="LIST", help="Only these faults, by comma. [all]")
    ] = None,
    machines: Annotated[
        str | None, typer.Option(metavar="LIST", help="Only these machines, by comma. [all]")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    replay: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Repeat the run of a case file instead.")
    ] = None,
    mutants: Annotated[
        bool, typer.Option("--mutants", help="Plant bugs in copies of the sources and find them.")
    ] = False,
    output_dir: Annotated[
        Path, typer.Option(file_okay=False, help="Where a failing run's case file goes.")
    ] = Path(),
    runs_dir: Annotated[
        Path | None, typer.Option(help="Where a failing run is recorded. [OUTPUT_DIR/runs]")
    ] = None,
) -> None:
    """Look for bugs in scheduler, cache, router and simulator.

    Every run is a function of its seed and of the sources. A run that breaks a law is repeated,
    made as small as possible and written to a file that repeats it anywhere; it is recorded, too,
    as any other run.
    """
    import os

    os.environ["WORKBENCH_NATIVE"] = "0"  # faults replace methods, which machine code does not let
    if mutants:
        _refuse_others(context, "--mutants")
        _mutants()
    elif replay is not None:
        _refuse_others(context, "--replay")
        _replay(replay)
    else:
        _explore(
            seed, _seconds(budget), runs, _names(faults), _names(machines), jobs, output_dir,
            runs_dir,
        )  # fmt: skip


def _explore(
    seed: int | None,
    seconds: float,
    runs: int | None,
    faults: tuple[str, ...],
    machines: tuple[str, ...],
    jobs: int,
    output_dir: Path,
    runs_dir: Path | None,
) -> None:
    import secrets
    import time

    from workbench.cli.failures import FAILURE_EXIT_CODE
    from workbench.cli.interrupt import stop_on_interrupt
    from workbench.fuzz.campaign import HOUR_S, Plan, carry_out
    from workbench.fuzz.canary import runs_until_found
    from workbench.fuzz.machines import FAULTS, MACHINES
    from workbench.record.provenance import source_commit

    _check_names("--machines", machines, MACHINES)
    there = frozenset().union(*(MACHINES[name].faults for name in machines)) or FAULTS
    _check_names("--faults", faults, FAULTS)
    _check_names(f"--faults with --machines {','.join(machines)}", faults, there)
    seed = secrets.randbits(40) if seed is None else seed
    typer.echo(f"seed={seed} commit={source_commit() or 'unknown'}")
    found = runs_until_found(seed)
    typer.echo(f"canary: a planted bug was found in run {found}")
    chosen = frozenset(faults) if faults else FAULTS
    plan = Plan(seed, runs, seconds, chosen, machines, jobs)
    started_s = time.monotonic()
    with stop_on_interrupt() as should_stop:
        tally = carry_out(plan, _Meter(), should_stop)
    _report(tally)
    if tally.failures:
        _report_failure(tally, faults, output_dir, runs_dir or output_dir / "runs")
        raise typer.Exit(FAILURE_EXIT_CODE)
    unreached, lines = tally.unreached(), tally.unreached_lines()
    if unreached:
        typer.echo(f"not reached: {', '.join(unreached)}")
    if lines:
        typer.echo(f"lines of engine/core that no traced run has reached: {len(lines)}")
    took_an_hour = time.monotonic() - started_s >= HOUR_S
    if (unreached or lines) and took_an_hour and not faults:
        for line in lines:
            typer.echo(f"  {line}")
        typer.echo("error: a run of an hour must reach all of them", err=True)
        raise typer.Exit(FAILURE_EXIT_CODE)
    if should_stop():
        raise typer.Exit(should_stop.exit_code)


class _Meter:
    """One line on a terminal that says how far it is."""

    def __call__(self, tally: Tally) -> None:
        import sys

        if sys.stderr.isatty():
            runs, checks = sum(tally.runs.values()), sum(tally.checks.values())
            sys.stderr.write(f"\r\x1b[K{runs:,} runs, {checks:,} checked operations")
            sys.stderr.flush()


def _report(tally: Tally) -> None:
    import sys

    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    for name in tally.runs:
        typer.echo(
            f"{name:10} {tally.runs[name]:>10,} runs {tally.checks[name]:>14,} checked operations"
        )
    runs, checks = sum(tally.runs.values()), sum(tally.checks.values())
    rate = f", {runs / tally.cpu_s:,.0f} runs/s of a core" if tally.cpu_s else ""
    typer.echo(
        f"{runs:,} runs, {checks:,} checked operations in {tally.cpu_s:,.1f} s of CPU{rate}: "
        f"{len(tally.failures)} violations"
    )


def _report_failure(
    tally: Tally, faults: tuple[str, ...], output_dir: Path, runs_dir: Path
) -> None:
    """Say how to repeat it, make it small, keep it."""
    from workbench.fuzz.campaign import find_again
    from workbench.fuzz.machines import FAULTS

    name, seed, what = tally.failures[0]
    only = f" --faults {','.join(faults)}" if faults else ""
    typer.echo(f"violation of {name} with seed {seed}: {what}")
    typer.echo(f"  once more: workbench fuzz --machines {name} --seed {seed} --runs 1{only}")
    failure = find_again(name, seed, frozenset(faults) if faults else FAULTS)
    if failure is None:
        typer.echo("  it does not fail again: the run is no function of its seed", err=True)
        return
    _keep(failure, output_dir, runs_dir)


def _keep(failure: Failure, output_dir: Path, runs_dir: Path) -> None:
    import time

    from workbench.fuzz.case_file import write_case
    from workbench.fuzz.failure_record import record_failure
    from workbench.fuzz.shrink import shrink
    from workbench.record.provenance import source_commit
    from workbench.record.result_folder import make_folder

    started_s = time.monotonic()
    small = shrink(failure, lambda: time.monotonic() - started_s > _SHRINK_S)
    make_folder(output_dir)
    path = output_dir / f"fuzz-{failure.machine.name}-{failure.seed}.ops.json"
    write_case(path, small, source_commit())
    typer.echo(
        f"  made small: {len(failure.operations)} operations -> {len(small.operations)} "
        f"in {time.monotonic() - started_s:.1f} s"
    )
    for operation in small.operations:
        typer.echo(f"    {' '.join(map(str, operation))}")
    typer.echo(f"  that one: workbench fuzz --replay {path}")
    recorded = record_failure(small, runs_dir)
    if recorded is not None:
        typer.echo(f"  recorded in {recorded}")


def _refuse_others(context: typer.Context, option: str) -> None:
    """Refuse whatever was said about an exploration, where there is none.

    Raises:
        UsageError: something was.
    """
    from workbench.cli.failures import UsageError

    said = [name for name in context.params if _was_said(context, name)]
    others = [f"--{name.replace('_', '-')}" for name in said if f"--{name}" != option]
    if others:
        raise UsageError(f"{option} stands alone: leave out {', '.join(others)}")


def _was_said(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _replay(path: Path) -> None:
    import traceback

    from workbench.cli.failures import FAILURE_EXIT_CODE, UsageError
    from workbench.fuzz.case_file import CaseFileError, repeat_file
    from workbench.fuzz.machines import MACHINES

    try:
        failure = repeat_file(path, MACHINES)
    except CaseFileError as error:
        raise UsageError(str(error)) from error  # 1 would say that a law is broken
    if failure is None:
        typer.echo(f"{path}: no violation")
        return
    last = "at rest" if failure.at_rest else f"in operation {len(failure.operations)}"
    typer.echo(f"{path}: violation {last}: {type(failure.error).__name__}: {failure.error}")
    typer.echo("".join(traceback.format_exception(failure.error)), err=True)
    raise typer.Exit(FAILURE_EXIT_CODE)


def _mutants() -> None:
    """The bugs and how they are planted belong to the tests; a wheel has none."""
    import subprocess
    import sys

    import workbench
    from workbench.cli.failures import UsageError

    root = Path(workbench.__file__).parent.parent
    harness = root / "tests" / "fuzz_mutants.py"
    if not harness.is_file():
        raise UsageError(
            f"--mutants needs the source tree: {harness} is missing. The bugs are patches of the "
            "sources and are kept with the tests; clone the repository and run it there."
        )
    ended = subprocess.run([sys.executable, str(harness)], check=False)  # noqa: S603 - our own
    raise typer.Exit(ended.returncode)


def _seconds(text: str) -> float:
    from workbench.cli.failures import UsageError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|min|h)?", text.strip())
    if match is None or not (seconds := float(match[1]) * _UNITS[match[2] or ""]):
        raise UsageError(f"--budget is {text!r}: give a time such as 60s, 5m or 8h")
    return seconds


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


def _check_names(option: str, names: tuple[str, ...], known: object) -> None:
    from workbench.cli.failures import UsageError

    there = sorted(known)  # type: ignore[call-overload]
    unknown = [name for name in names if name not in there]
    if unknown:
        raise UsageError(f"{option}: no {', '.join(unknown)}; there are {', '.join(there)}")
