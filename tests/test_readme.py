"""The README keeps its promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
SIMULATE = "python3 -m venv .venv && .venv/bin/pip install -q -e . && .venv/bin/workbench simulate "
TEST = (
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' "
    "&& .venv/bin/python -m pytest -q -n auto"
)


def section(title: str) -> str:
    """The text below a heading, up to the next of its level."""
    _, found, rest = README.partition(f"\n## {title}\n")
    assert found, f"no section {title!r}"
    return rest.partition("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_two_commands_do_all_the_set_up() -> None:
    """The README gives exactly two commands to start with: one simulates, one runs the tests."""
    simulate, test = blocks(section("Two commands"), "sh")
    assert simulate == f"{SIMULATE}scenarios/quickstart.yaml\n"
    assert test == f"{TEST}\n"


def test_ci_runs_the_test_command() -> None:
    """CI runs the README's test command, letter by letter."""
    assert f"\n{TEST}\n" in CI


def test_quickstart_output_is_real() -> None:
    """The output in the README is what the quickstart prints."""
    (shown,) = blocks(section("What the quickstart prints"), "text")
    process = subprocess.run(
        [sys.executable, "-m", "workbench", "simulate", "scenarios/quickstart.yaml", "--no-record"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown == process.stdout


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    """Every file that the README links to or shows exists."""
    assert (ROOT / target).exists()


def test_every_command_is_in_the_table() -> None:
    """The README's table lists exactly the commands that there are."""
    from typer.main import get_command

    from workbench.cli import app

    named = set(re.findall(r"^\| `workbench (\w+)", section("Commands"), re.MULTILINE))
    assert named == set(get_command(app).commands)
