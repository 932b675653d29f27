"""The exact commands of Nsight Systems and Nsight Compute, and running them where they are."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from workbench.profile.ncu_report import METRICS

NVTX: Final = {"WORKBENCH_NVTX": "1"}
_DOMAIN: Final = "workbench"
_PLACES: Final = ("/usr/local/cuda/bin", "/opt/nvidia/nsight-compute", "/opt/nvidia/nsight-systems")


class ToolError(RuntimeError):
    """A tool that failed; says which, and what it wrote."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command line.

    Attributes:
        words: the command and its arguments.
        environment: what it needs besides what there is.
    """

    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """As one types it."""
        before = [f"{name}={shlex.quote(value)}" for name, value in self.environment]
        return " ".join([*before, shlex.join(self.words)])


def find_tool(name: str) -> str | None:
    """Where a tool is: on the path, or where CUDA's installers put it; None: nowhere."""
    found = shutil.which(name)
    if found is not None:
        return found
    for place in _PLACES:
        for path in sorted(Path(place).glob(f"**/{name}"), reverse=True):
            if path.is_file() and os.access(path, os.X_OK) and "host" not in path.parts:
                return str(path)
    return None


def step_command(arguments: Sequence[str], python: str | None = None) -> tuple[str, ...]:
    """What a profiler runs: `workbench profile step` with these arguments."""
    return (python or sys.executable, "-m", "workbench", "profile", "step", *arguments)


def nsys_commands(
    arguments: Sequence[str],
    name: str,
    ran: Sequence[str] = (),
    *,
    python: str | None = None,
    nsys: str = "nsys",
) -> list[Command]:
    """Record a step with Nsight Systems, export it, and read it back.

    Args:
        arguments: of `workbench profile step`.
        name: of the report, without its ending.
        ran: further arguments of `workbench profile import`, of what ran.
        python: that runs it; None: this one.
        nsys: the tool.
    """
    environment = tuple(NVTX.items())
    record = (
        nsys, "profile", "--trace=cuda,nvtx,osrt", "--cuda-graph-trace=node",
        "--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--force-overwrite=true",
        f"--output={name}", *step_command(arguments, python),
    )  # fmt: skip
    export = (
        nsys, "export", "--type=sqlite", "--force-overwrite=true", f"--output={name}.sqlite",
        f"{name}.nsys-rep",
    )  # fmt: skip
    return [
        Command(record, environment),
        Command(export),
        Command(("workbench", "profile", "import", f"{name}.sqlite", *ran)),
    ]


def ncu_command(
    arguments: Sequence[str],
    log: Path,
    *,
    metrics: Sequence[str] = METRICS,
    only: str | None = None,
    python: str | None = None,
    ncu: str = "ncu",
) -> Command:
    """Read the device's counters of every kernel of a step, launched kernel by kernel.

    Clocks stay as they are, since they are not ours alone. Caches are emptied before each pass, as
    between two steps the weights of all other layers pass through them.

    Args:
        arguments: of `workbench profile step`.
        log: where the CSV goes.
        metrics: to read.
        only: a class of kernels; None: all.
        python: that runs the step; None: this one.
        ncu: the tool.
    """
    include = ("--nvtx-include", f"{_DOMAIN}@{only}/") if only else ()
    words = (
        ncu, "--clock-control", "none", "--cache-control", "all", "--replay-mode", "kernel",
        "--profile-from-start", "off", "--nvtx", *include, "--metrics", ",".join(metrics),
        "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log),
        *step_command(arguments if "--eager" in arguments else ("--eager", *arguments), python),
    )  # fmt: skip
    return Command(words, tuple(NVTX.items()))


def known_metrics(ncu: str) -> tuple[str, ...]:
    """Those of `METRICS` that this ncu knows for the GPU that is here; all if it does not say."""
    command = [ncu, "--query-metrics"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
    known = set(re.findall(r"^(\w+__\w+)\s", done.stdout, re.MULTILINE))
    if not known:
        return METRICS
    # Launch facts are no counters, and are not listed.
    return tuple(
        name for name in METRICS if name.partition(".")[0] in known or name.startswith("launch__")
    )


def run_tool(command: Command, limit_s: float) -> str:
    """Run a command; what it printed.

    Raises:
        ToolError: it failed or took too long.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - our own command line
            command.words, env={**os.environ, **dict(command.environment)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    except OSError as error:
        raise ToolError(f"{command.words[0]} cannot be run: {error.strerror}") from error
    try:
        printed, said = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise ToolError(
            f"{command.words[0]} took longer than {limit_s:g} s:\n  {command}"
        ) from None
    finally:
        _end(process)
    if process.returncode:
        last = "\n  ".join((said or printed).strip().splitlines()[-6:])
        raise ToolError(f"{command.words[0]} ended with {process.returncode}:\n  {last}")
    return printed


def _end(process: subprocess.Popen[str]) -> None:
    """End a tool that still runs, and what it watches, which would keep the GPU's memory."""
    if process.poll() is not None:
        return
    for number in [*_descendants(process.pid), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.communicate()


def _descendants(parent: int) -> list[int]:
    """Processes that a process started, and those that they did."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == parent:
            child = int(path.parent.name)
            found += [*_descendants(child), child]
    return found
