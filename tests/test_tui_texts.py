"""Small languages and texts of the interface: go to, settings, ASCII, saved state, themes."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.segment import Segment
from rich.style import Style
from textual.color import Color

from workbench.scenario.errors import Source
from workbench.scenario.source import load_scenario, shipped_names
from workbench.scenario.yaml_text import parse_yaml
from workbench.tui.app import WorkbenchApp
from workbench.tui.ascii_lines import AsciiLines, ascii_text
from workbench.tui.goto_target import (
    NoTargetError,
    RequestTarget,
    StepTarget,
    Target,
    TimeTarget,
    parse_target,
)
from workbench.tui.live.pages import USES
from workbench.tui.requests.list import SHAPES
from workbench.tui.saved_state import SavedState, load_state, save_state
from workbench.tui.scenarios.preview_pane import SHARE_SHAPES
from workbench.tui.scenarios.settings import one_line, settings_between
from workbench.tui.themes import DARK, LIGHT, OWN_THEMES


@pytest.mark.parametrize(
    ("text", "target"),
    [
        (":step 2200", StepTarget(2200)),
        ("s 2,200", StepTarget(2200)),
        ("17", StepTarget(17)),
        ("step 1:40", StepTarget(40, replica=1)),
        (":r456", RequestTarget(456)),
        ("R 7", RequestTarget(7)),
        (":t 24.7", TimeTarget(24.7)),
        ("t 350ms", TimeTarget(0.35)),
    ],
)
def test_go_to_understands(text: str, target: Target) -> None:
    """Steps, requests and times, with and without colon and blanks."""
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "x", "t", "r", "step -3", "t 1h", "r1 r2"])
def test_go_to_refuses_with_an_example(text: str) -> None:
    """What is no place says what would be one."""
    with pytest.raises(NoTargetError, match="for example step 2200"):
        parse_target(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False, width=32) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text("abcdefgh_", min_size=1, max_size=6), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
def test_a_value_on_one_line_is_read_back(value: object) -> None:
    """`one_line` is YAML on one line that means the value."""
    text = one_line(value)
    assert "\n" not in text
    parsed = parse_yaml(Source("", f"key: {text}"))
    assert not parsed.errors
    assert parsed.data["key"] == value


@pytest.mark.parametrize("other", shipped_names())
def test_settings_lead_from_one_scenario_to_the_other(other: str) -> None:
    """The settings between two resolved scenarios make the one of the other."""
    if "trace" in other or other == "engine_on_cpu":
        pytest.skip("names a file")
    before, after = load_scenario("quickstart"), load_scenario(other)
    settings = settings_between(before.resolved, after.resolved)
    assert load_scenario("quickstart", settings).resolved == after.resolved
    assert settings_between(after.resolved, after.resolved) == []


@given(st.text(max_size=40))
def test_ascii_keeps_the_number_of_cells(text: str) -> None:
    """Each character becomes one of ASCII; ASCII stays as it is."""
    found = ascii_text(text)
    assert found.isascii()
    assert len(found) == len(text)
    if text.isascii():
        assert found == text


def test_ascii_lines_keep_styles() -> None:
    """Only the text of a line changes."""
    bold = Style(bold=True)
    line = [Segment("▂▅█ TTFT", bold), Segment("⠿⠀", None)]
    assert AsciiLines().apply(line, Color(0, 0, 0)) == [
        Segment(".+# TTFT", bold), Segment(": ", None),
    ]  # fmt: skip


def test_state_is_remembered(tmp_path: Path) -> None:
    """What was saved is loaded; a folder that is missing is made."""
    path, state = tmp_path / "deep" / "state.json", SavedState(theme="nord", zoom=3)
    assert save_state(path, state) is None
    assert load_state(path) == (state, None)


def test_a_broken_state_starts_afresh_and_says_so(tmp_path: Path) -> None:
    """Damage, wrong types and missing files are no reason not to start."""
    path = tmp_path / "state.json"
    assert load_state(path) == (SavedState(), None)
    for text in ("{", '{"zoom": "much"}', "[]"):
        path.write_text(text)
        state, trouble = load_state(path)
        assert state == SavedState()
        assert trouble is not None
        assert str(path) in trouble


def test_a_state_that_cannot_be_saved_says_why(tmp_path: Path) -> None:
    """A file where a folder should be."""
    (tmp_path / "file").write_text("")
    trouble = save_state(tmp_path / "file" / "state.json", SavedState())
    assert trouble is not None


def test_all_themes_have_all_data_colours() -> None:
    """Dark and light name the same colours, and own themes bring them."""
    assert DARK.keys() == LIGHT.keys()
    for theme in OWN_THEMES:
        assert DARK.keys() <= theme.variables.keys()


@pytest.mark.parametrize("colours", [DARK, LIGHT])
def test_categories_side_by_side_differ_in_greys(colours: dict[str, str]) -> None:
    """Prefill, cache hit, decode and free pages can be told apart without hue."""
    names = ("data-prefill", "data-hit", "data-decode", "data-free")
    greys = sorted(Color.parse(colours[name]).brightness for name in names)
    assert min(b - a for a, b in pairwise(greys)) > 0.04


@pytest.mark.parametrize(
    "glyphs",
    [
        "".join(category.shape for category in USES),
        SHARE_SHAPES,
        "".join(SHAPES.values()),
        "▓░█▒v·",  # prefill, hit, decode, ms, retracted, evicted on the live screen
    ],
)
def test_what_glyphs_tell_apart_ascii_tells_apart(glyphs: str) -> None:
    """Of one legend no two categories are drawn alike."""
    assert len(set(ascii_text(glyphs))) == len(glyphs)


def test_every_character_that_the_interface_draws_has_a_likeness() -> None:
    """No `?` where there is no question: all string literals of `workbench/tui` are looked at."""
    folder = Path(WorkbenchApp.__module__.replace(".", "/")).parent
    drawn = set()
    for path in (Path(__file__).parent.parent / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                drawn |= set(node.value)
    unlike = sorted(c for c in drawn if not c.isascii() and ascii_text(c) == "?")
    assert not unlike
