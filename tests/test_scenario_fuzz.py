"""No text, however mangled, makes the loader end in anything but a scenario or placed errors."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from scenario_texts import BASE

from workbench.scenario.errors import CODES, ScenarioError, ScenarioErrors
from workbench.scenario.source import load_scenario, shipped_names, shipped_text
from workbench.scenario.template import scenario_template

TEXTS = [BASE, scenario_template(), *map(shipped_text, shipped_names())]
JARGON = re.compile(r"pydantic|validator|Input should|discriminat|literal\[|ScenarioModel|ctx")
TOKENS = [
    "null", "~", "true", "1e400", "-1", "0", ".nan", ".inf", "1_0", "0x", "9" * 70, "''", '"\\x"',
    "[]", "{}", "{kind: fixed}", "{kind: [1]}", "[{}]", "kind", "kind: trace", "&a", "*a", "<<: {}",
    "!!binary eA==", "!!set {a}", "!!timestamp 1", "!!bool x", "? ", ": ", "- ", "---\n", "...\n",
    "%YAML 1.1\n---\n", "|\n", ">-\n", "#", "\t", "\n", "\n  ", "\r", "\u2028", "\ufeff", "\x85",
    "\x00", "\ud7ff", "漢", "'", '"', "`", "@", "{", "}", "[", "]", ",", "\\", "2020-01-01", "yes",
]  # fmt: skip

pieces = st.one_of(st.sampled_from(TOKENS), st.text(max_size=4))
places = st.integers(0, 2000)


@st.composite
def mangled(draw: st.DrawFn) -> str:
    """A good scenario with up to four pieces cut out, put in, doubled or exchanged."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        text = draw(st.sampled_from([_cut, _insert, _repeat_line, _replace_word]))(draw, text)
    return text


def _cut(draw: st.DrawFn, text: str) -> str:
    start = draw(places) % (len(text) + 1)
    return text[:start] + text[start + draw(st.integers(1, 30)) :]


def _insert(draw: st.DrawFn, text: str) -> str:
    start = draw(places) % (len(text) + 1)
    return text[:start] + draw(pieces) + text[start:]


def _repeat_line(draw: st.DrawFn, text: str) -> str:
    lines = text.splitlines(keepends=True) or [""]
    here, there = draw(places) % len(lines), draw(places) % len(lines)
    return "".join([*lines[:there], lines[here], *lines[there:]])


def _replace_word(draw: st.DrawFn, text: str) -> str:
    words = [match.span() for match in re.finditer(r"[\w.-]+", text)]
    if not words:
        return text
    start, end = words[draw(places) % len(words)]
    return text[:start] + draw(pieces) + text[end:]


def _check(content: bytes, overrides: list[str]) -> None:
    """Load; any failure must be errors with codes, advice in plain words, and a real place."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "f.yaml"
        file.write_bytes(content)
        errors = _errors(file, overrides)
    if errors is None:
        return
    assert errors.errors
    assert "\x1b" not in str(errors)
    for error in errors.errors:
        _check_error(error, content)


def _errors(file: Path, overrides: list[str]) -> ScenarioErrors | None:
    try:
        load_scenario(file, overrides)
    except ScenarioErrors as errors:
        return errors
    return None


def _check_error(error: ScenarioError, content: bytes) -> None:
    assert error.code in CODES
    assert not JARGON.search(error.message + error.help), str(error)
    if error.line is not None:
        lines = content.decode("utf-8-sig").split("\n")
        assert 1 <= error.line <= len(lines)
        assert 1 <= error.column <= len(lines[error.line - 1]) + 1
        assert "^" in str(error)


@settings(max_examples=250, deadline=None)
@given(mangled())
@example(BASE.replace("512", "!!float nan"))
@example(BASE.replace("{gpu: h200}", "{gpu: [[]], kind: gpu}"))
def test_mangled_scenarios(text: str) -> None:
    """A mangled scenario loads or gives placed errors."""
    _check(text.encode("utf-8", "surrogatepass"), [])


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(content: bytes) -> None:
    """Bytes that are no scenario give errors."""
    _check(content, [])


def _paths(data: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of everything in a scenario's data."""
    pairs = enumerate(data) if isinstance(data, list) else data.items()
    for key, value in pairs:
        yield f"{prefix}{key}"
        if isinstance(value, (dict, list)):
            yield from _paths(value, f"{prefix}{key}.")


PATHS = sorted({path for name in ("routers", "prefix_cache_chat", "slo_goodput", "moe")
                for path in _paths(load_scenario(name).resolved)})  # fmt: skip
VALUES = [
    *TOKENS, "{kind: uniform, min: 3}", "{kind: uniform, min: 3, max: 1}", "{kind: zipf, max: 0}",
    "{kind: lognormal, mean: 1e300, std_dev: 1e-300, max: 5}", "gamma", "trace", "conversation",
    "{a: {b: [1, {d: 2}]}}", "[1, 2]", "[2, 1]", "-0.0", "1e9", "h200", "prefill", "lpm", "abc",
]  # fmt: skip
paths = st.sampled_from(PATHS) | st.sampled_from(PATHS) | st.text("abk.=0 -", max_size=8)
values = st.one_of(st.sampled_from(VALUES), st.text(max_size=4))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(TEXTS),
    st.lists(st.builds("{}={}".format, paths, values), min_size=1, max_size=2),
)
@example(BASE, ["seed"])
def test_arbitrary_overrides(text: str, overrides: list[str]) -> None:
    """Overrides of any form, of any key with any value, load or give placed errors."""
    _check(text.encode(), overrides)
