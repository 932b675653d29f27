"""Calls of the command line, in this process, and a scenario that it simulates quickly."""

from __future__ import annotations

import sys
from pathlib import Path

from typer.testing import CliRunner, Result

from simulator.profile_file import read_profile
from workbench.cli import app

WORKBENCH = [sys.executable, "-m", "workbench"]
SMALL = ["simulate", "quickstart", "--num-prompts", "150"]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def calibrate_cpu(folder: Path, *options: str) -> Result:
    """Calibrate the tiny model on this machine, which may be busy: until all is measured."""
    command = ("calibrate", "--cpu", "--minutes", "0.15", "--output-dir", str(folder), *options)
    for _ in range(12):
        result = invoke(*command)
        if result.exit_code == 0:
            profile = read_profile(folder / "cpu-tiny-model-fp32-tp1.json")
            if len(profile.samples) >= profile.conditions["designed_steps"]:
                break
    return result
