"""Calls of the command line, in this process, and a scenario that it simulates quickly."""

from __future__ import annotations

import sys

from typer.testing import CliRunner, Result

from workbench.cli import app

WORKBENCH = [sys.executable, "-m", "workbench"]
SMALL = ["simulate", "quickstart", "--num-prompts", "150"]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)
