"""Plot primitives: what is drawn is what the numbers say, with colours and without."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.tui.plots import bars, braille
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import HUES, RAMP, Palette
from workbench.tui.plots.raster import Category, Raster
from workbench.tui.store.icicle import lay_out
from workbench.tui.store.node_log import TreeState
from workbench.tui.store.page_map import highest, in_rows, most_common, pages_per_pixel
from workbench.tui.store.strip_window import round_up
from workbench.tui.themes import DARK, LIGHT

THEMES = {
    "dark": ({**DARK, "foreground": "#c9d1d9", "background": "#11141a"}, True),
    "light": ({**LIGHT, "foreground": "#1f2430", "background": "#fafaf7"}, False),
}
PALETTE = Palette(*THEMES["dark"])
SHAPES = Palette(*THEMES["dark"], shapes=True)


def text_of(canvas: Canvas) -> list[str]:
    return [row.tobytes().decode("utf-32-le") for row in canvas.glyphs]


@given(st.lists(st.integers(0, 64), min_size=1, max_size=30), st.integers(1, 8))
def test_a_bar_is_as_high_as_its_level(levels, height) -> None:
    """The eighths of the cells of a column add up to its level, cut off at the top."""
    canvas = Canvas(len(levels), height)
    level = np.minimum(np.array(levels), 8 * height)
    bars.bars(canvas, PALETTE, 0, 0, height, level, "data-decode")
    drawn = [[" ▁▂▃▄▅▆▇█".index(char) for char in row] for row in text_of(canvas)]
    assert np.sum(drawn, axis=0).tolist() == level.tolist()


@given(st.floats(0, 1e9), st.floats(1e-3, 1e9), st.integers(1, 9))
def test_no_value_but_zero_is_drawn_as_nothing(value, top, height) -> None:
    """A bar is at least one eighth high unless it is zero, and never higher than its lane."""
    (level,) = bars.eighths(np.array([value]), top, height)
    assert (level == 0) == (value == 0)
    assert level <= 8 * height


@pytest.mark.parametrize("palette", [PALETTE, SHAPES])
def test_a_stack_shows_both_parts(palette: Palette) -> None:
    """The lower part stands below the upper one, each in its own ink, or with its own glyph."""
    canvas = Canvas(1, 4)
    colours = ("data-prefill", "data-hit")
    bars.stack(canvas, palette, 0, 0, 4, np.array([16]), np.array([32]), colours)
    low, high = palette.ink("data-prefill"), palette.ink("data-hit")
    assert canvas.inks[:, 0].tolist() == [high, high, low, low]
    assert text_of(canvas) == (["░", "░", "▓", "▓"] if palette.shapes else ["█"] * 4)


def test_pixels_are_two_to_a_cell_in_colour_and_a_glyph_each_without() -> None:
    """Rows of pixels lie in pairs above each other; without colours each category has its glyph."""
    categories = (Category("data-free", "."), Category("data-decode", "#"))
    pixels = np.array([[0, 1], [1, -1]])
    canvas = Canvas(2, 1)
    Raster(pixels, categories).draw(canvas, PALETTE, 0, 0)
    assert text_of(canvas) == ["▀▀"]
    assert canvas.inks[0, 0] == PALETTE.ink("data-free", "data-decode")
    assert canvas.inks[0, 1] == PALETTE.ink("data-decode", "background")
    plain = Canvas(2, 2)
    Raster(pixels, categories).draw(plain, SHAPES, 0, 0)
    assert text_of(plain) == [".#", "# "]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=60))
def test_every_point_has_a_dot_in_its_cell(points) -> None:
    """Each point inside lights a dot of the braille cell that it lies in."""
    canvas = Canvas(10, 5)
    across, up = (np.array([p[i] for p in points]) for i in (0, 1))
    braille.scatter(canvas, 0, 0, 10, 5, (across, up), 0)
    lit = {(x, y) for y, row in enumerate(text_of(canvas)) for x, c in enumerate(row) if c != " "}
    cells = {(min(int(x * 20), 19) // 2, min(int((1 - y) * 20), 19) // 4) for x, y in points}
    assert lit == cells


def test_a_line_keeps_its_peaks_and_its_gaps() -> None:
    """One high value among thousands is seen, and where nothing is known nothing is drawn."""
    values = np.zeros(4000)
    values[1234] = 1.0
    canvas = Canvas(20, 3)
    braille.line(canvas, 0, 0, 20, 3, values, 0)
    assert text_of(canvas)[0].strip()
    blank = Canvas(20, 3)
    braille.line(blank, 0, 0, 20, 3, np.full(40, np.nan), 0)
    assert not "".join(text_of(blank)).strip()


@pytest.mark.parametrize("theme", THEMES)
def test_every_colour_that_charts_name_is_there_and_neighbours_differ_in_brightness(theme) -> None:
    """Requests' hues and shades exist, and shades of a ramp get lighter or darker all the way."""
    palette = Palette(*THEMES[theme])
    for number in range(HUES):
        palette.colour(f"hue-{number}")
    for family in ("age", "refs", "unused"):
        light = [palette.colour(f"{family}-{i}").brightness for i in range(RAMP)]
        assert light in (sorted(light), sorted(light, reverse=True))
        assert len(set(light)) == RAMP
    kinds = ("data-free", "data-cached", "data-hit", "data-prefill", "data-decode")
    light = [palette.colour(kind).brightness for kind in kinds]
    assert len({round(value, 2) for value in light}) == len(kinds)


def test_text_is_cut_off_at_the_edges() -> None:
    """Nothing is written outside a canvas, and what is inside is."""
    canvas = Canvas(6, 1)
    assert canvas.text(3, 0, "abcdef") == 6
    assert canvas.text(0, 5, "below") == 0
    assert canvas.text(9, 0, "right of it") == 9
    canvas.right(3, 0, "xyzw")
    assert text_of(canvas) == ["yzwabc"]


def test_only_rows_that_differ_are_said_to_have_changed() -> None:
    """Glyphs and inks both count; another size means everything."""
    one, two = Canvas(4, 3), Canvas(4, 3)
    two.text(0, 1, "x")
    two.inks[2, 3] = 1
    assert two.changed_rows(one).tolist() == [False, True, True]
    assert Canvas(5, 3).changed_rows(one).all()
    assert one.changed_rows(None).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(1, 9))
def test_a_pixel_is_what_most_of_its_pages_are(values, per_pixel) -> None:
    """Of equally many the higher kind; the highest is the highest of its pages."""
    found = most_common(np.array(values), 5, per_pixel)
    most = highest(np.array(values), per_pixel)
    for at in range(-(-len(values) // per_pixel)):
        pages = values[at * per_pixel : (at + 1) * per_pixel]
        assert found[at] == max(range(5), key=lambda kind: (pages.count(kind), kind))
        assert most[at] == max(pages)


@given(st.integers(1, 200_000), st.integers(1, 5000))
def test_all_pages_fit_and_no_pixel_is_wasted(num_pages, pixels) -> None:
    """So many pages a pixel are needed, and one fewer would not do."""
    per_pixel = pages_per_pixel(num_pages, pixels)
    assert per_pixel * pixels >= num_pages
    assert per_pixel == 1 or (per_pixel - 1) * pixels < num_pages
    assert in_rows(np.zeros(3, np.int64), 2, 4).tolist() == [[0, 0, 0, -1], [-1, -1, -1, -1]]


@given(st.lists(st.integers(0, 30), max_size=40), st.lists(st.integers(0, 20), min_size=41))
def test_an_icicle_is_as_wide_as_its_tokens(parents, tokens) -> None:
    """Widths are tokens of subtrees, children lie within their parent, and none overlap."""
    count = len(parents) + 1
    parent = np.array([-1, *(1 + p % (i + 1) for i, p in enumerate(parents))])
    node = np.arange(1, count + 1)
    of = np.array([0, *tokens[: count - 1]], np.int32)
    zero = np.zeros(count, np.int32)
    tree = TreeState(9, node, parent, of, zero, zero.astype(np.int64))
    icicle = lay_out(tree)
    assert icicle.tokens == int(of.sum())
    total = max(icicle.tokens, 1)
    np.testing.assert_allclose(icicle.right - icicle.left, icicle.subtree / total, atol=1e-9)
    for at in range(1, count):
        above = int(parent[at]) - 1
        assert icicle.depth[at] == icicle.depth[above] + 1
        assert icicle.left[at] >= icicle.left[above] - 1e-9
        assert icicle.right[at] <= icicle.right[above] + 1e-9
    for depth in range(int(icicle.depth.max()) + 1):
        level = np.flatnonzero((icicle.depth == depth) & (icicle.subtree > 0))
        level = level[np.argsort(icicle.left[level], kind="stable")]
        assert (icicle.left[level][1:] >= icicle.right[level][:-1] - 1e-9).all()


@given(st.floats(1, 1e12))
def test_scales_end_at_round_numbers(value) -> None:
    """The next of 1, 2, 5, 10, ...: not below the value, at most two and a half times it."""
    top = round_up(value)
    assert value * (1 - 1e-9) <= top <= 2.5 * value + 1
    assert int(str(top)[0]) in (1, 2, 5)
    assert set(str(top)[1:]) <= {"0"}
