"""Scenario texts for tests, and how tests load them."""

from __future__ import annotations

from pathlib import Path

from workbench.scenario.errors import ScenarioError, ScenarioErrors
from workbench.scenario.source import load_scenario

BASE = """\
schema: workbench/scenario/v1
name: base
model: {name: Llama-3.1-8B}
hardware: {gpu: h200}
workload:
  kind: synthetic
  prompt_len: 512
  output_len: {kind: lognormal, mean: 100, std_dev: 50, max: 400}
load:
  kind: gamma
  request_rate: 10
  burstiness: 0.5
"""


def changed(old: str, new: str) -> str:
    """`BASE` with one piece of text replaced."""
    assert BASE.count(old) == 1, old
    return BASE.replace(old, new)


def write(folder: Path, text: str, name: str = "bad.yaml") -> Path:
    """A file of that text."""
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def errors_of(file: Path | str, *overrides: str) -> tuple[ScenarioError, ...]:
    """The errors that loading ends with; loading must fail."""
    try:
        load_scenario(file, overrides)
    except ScenarioErrors as errors:
        return errors.errors
    raise AssertionError(f"{file} loaded without an error")


def error_of(file: Path | str, *overrides: str) -> ScenarioError:
    """The one error that loading ends with."""
    errors = errors_of(file, *overrides)
    assert len(errors) == 1, "\n".join(map(str, errors))
    return errors[0]


def underlined(error: ScenarioError) -> str:
    """The text above the carets of a printed error."""
    lines = str(error).splitlines()
    caret = next(i for i, line in enumerate(lines) if set(line.strip("| ")) == {"^"})
    start, end = lines[caret].index("^"), lines[caret].rindex("^") + 1
    return lines[caret - 1][start:end]
