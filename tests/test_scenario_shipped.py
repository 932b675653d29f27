"""The scenarios that come with the program are valid lessons, and the template names every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scenario_texts import error_of, write

from workbench.scenario.errors import Source
from workbench.scenario.schema import Scenario
from workbench.scenario.shape import branches, keys_of, model_of
from workbench.scenario.source import load_scenario, shipped_names, shipped_scenarios, shipped_text
from workbench.scenario.template import scenario_template
from workbench.scenario.yaml_text import parse_yaml

TRACES = {"mooncake_trace", "azure_trace"}
TRIES = re.compile(r"--set (?:'([^']+)'|(\S+))")


def _trace_override(name: str, folder: Path) -> list[str]:
    """The path that a trace scenario waits for, of a file that exists."""
    (folder / "trace").touch()
    return [f"workload.path={folder / 'trace'}"] if name in TRACES else []


def _comment(name: str) -> list[str]:
    lines = shipped_text(name).splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]


def test_there_are_enough_of_them() -> None:
    """At least twelve scenarios are shipped, the quickstart among them."""
    assert len(shipped_names()) >= 12
    assert "quickstart" in shipped_names()
    assert [name for name, _ in shipped_scenarios()] == shipped_names()


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_scenario_loads_by_name(name: str, tmp_path: Path) -> None:
    """Its name in the file is its name in the list."""
    loaded = load_scenario(name, _trace_override(name, tmp_path))
    assert loaded.scenario.name == name
    assert loaded.path is None


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_scenario_is_a_lesson(name: str, tmp_path: Path) -> None:
    """It opens with three lines on what to look at, and every `--set` it suggests works."""
    comment = _comment(name)
    assert comment[1].startswith("# Look at")
    suggestions = [line for line in comment if "--set" in line]
    tried = next(i for i, line in enumerate(comment) if line.startswith("# Try:"))
    assert tried >= 3
    assert suggestions
    for line in comment[tried:]:
        overrides = [quoted or plain for quoted, plain in TRIES.findall(line)]
        assert overrides, line
        base = load_scenario(name, _trace_override(name, tmp_path))
        changed = load_scenario(name, _trace_override(name, tmp_path) + overrides)
        assert changed.sha256 != base.sha256, line


@pytest.mark.parametrize("name", sorted(TRACES))
def test_a_trace_scenario_asks_for_its_file(name: str) -> None:
    """Without a trace, the error names the key and the override that gives it."""
    error = error_of(name)
    assert error.code == "S102"
    assert "missing key `path` in `workload`" in error.message
    assert "--set workload.path=" in error.help


def test_the_template_is_a_valid_scenario(tmp_path: Path) -> None:
    """What `workbench init` writes loads, under the name that was asked for."""
    file = write(tmp_path, scenario_template("mine"), "mine.yaml")
    assert load_scenario(file).scenario.name == "mine"


def _all_keys(model: type) -> set[str]:
    """Every key of a model and of the models below it."""
    keys: set[str] = set()
    for key, annotation in keys_of(model).items():
        keys.add(key)
        for child in (model_of(annotation), *branches(annotation).values()):
            keys |= _all_keys(child) if child is not None else set()
    return keys


def test_the_template_mentions_every_key() -> None:
    """No key is missing from it but those of things that are not supported yet."""
    words = set(re.findall(r"[a-z0-9_]+", scenario_template()))
    unsupported = {"method", "num_speculative_tokens"}
    assert _all_keys(Scenario) - unsupported <= words


def test_the_template_states_true_defaults() -> None:
    """A key whose comment says `default` has the value that leaving it out gives."""
    source = Source("template", scenario_template())
    parsed = parse_yaml(source)
    written = Scenario.model_validate(parsed.data)
    left_out = 0
    for path, span in parsed.keys.items():
        *parents, key = path
        parent = parsed.data
        for step in parents:
            parent = parent[step]
        line = source.line(source.position(span.start)[0])
        if "# default: " in line and not isinstance(parent[key], (dict, list)):
            del parent[key]
            left_out += 1
    assert left_out > 20
    assert Scenario.model_validate(parsed.data) == written
