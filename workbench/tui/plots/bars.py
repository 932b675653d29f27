"""Bars in eighths of a cell: stacks of two parts, sparklines, and ticks above them."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

EIGHTHS: Final = np.array([ord(glyph) for glyph in " ▁▂▃▄▅▆▇█"], np.uint32)


def eighths(values: Float64 | Int64, top: float, height: int) -> Int64:
    """Heights of bars in eighths of a cell; what is not zero is at least one eighth high."""
    scaled = np.round(np.asarray(values, np.float64) / max(top, 1e-12) * height * 8)
    level = np.clip(scaled, 0, height * 8).astype(np.int64)
    return np.where((np.asarray(values) > 0) & (level == 0), 1, level)


def stack(
    canvas: Canvas,
    palette: Palette,
    x: int,
    y: int,
    height: int,
    lower: Int64,
    upper: Int64,
    colours: tuple[str, str],
    shapes: tuple[str, str] = ("▓", "░"),
    lit: NDArray[np.bool_] | None = None,
) -> None:
    """Draw one bar per column, of two parts on top of each other.

    Args:
        canvas: to draw on.
        palette: for the colours.
        x: left edge.
        y: upper edge.
        height: rows.
        lower: int64[columns], height of the lower part, in eighths of a cell.
        upper: int64[columns], height of both together.
        colours: of the two parts.
        shapes: their glyphs where there are no colours.
        lit: bool[columns], columns whose lower part is in the colour of a selection.
    """
    columns = slice(x, x + len(lower))
    inks = _stack_inks(palette, colours)
    chosen = np.zeros(len(lower), np.int64) if lit is None else lit.astype(np.int64)
    for row in range(height):
        base = 8 * (height - 1 - row)
        low, both = np.clip(lower - base, 0, 8), np.clip(upper - base, 0, 8)
        if palette.shapes:
            glyphs, ink = _shapes_row(low, both, shapes, inks, chosen)
        else:
            glyphs, ink = _colours_row(low, both, inks, chosen)
        drawn = both > 0
        canvas.glyphs[y + row, columns][drawn] = glyphs[drawn]
        canvas.inks[y + row, columns][drawn] = ink[drawn]


def bars(
    canvas: Canvas,
    palette: Palette,
    x: int,
    y: int,
    height: int,
    level: Int64,
    colour: str,
    shape: str = "█",
    lit: NDArray[np.bool_] | None = None,
) -> None:
    """Draw one bar per column; the arguments are those of `stack`."""
    stack(canvas, palette, x, y, height, level, level, (colour, colour), (shape, shape), lit)


def baseline(
    canvas: Canvas,
    palette: Palette,
    x: int,
    y: int,
    level: Int64,
    colour: str,
    lit: NDArray[np.bool_],
) -> None:
    """Draw the colour of a selection along the foot of bars of a colour, in the columns `lit`."""
    at = np.flatnonzero(lit & (level > 0))
    inks = np.array([palette.ink("data-selected"), palette.ink("data-selected", colour)])
    if palette.shapes:
        canvas.glyphs[y, x + at] = ord("◆")
        canvas.inks[y, x + at] = inks[0]
        return
    full = level[at] >= 6
    canvas.glyphs[y, x + at] = np.where(full, ord("▂"), EIGHTHS[np.minimum(level[at], 8)])
    canvas.inks[y, x + at] = inks[full.astype(np.int64)]


def ticks(canvas: Canvas, x: int, y: int, height: int, level: Int64, ink: int) -> None:
    """Draw a small tick at the height of each level, where it is above what is drawn there."""
    glyph = ord("▔")
    at = np.flatnonzero(level > 0)
    rows = y + height - 1 - np.minimum((level[at] - 1) // 8, height - 1)
    blank = canvas.glyphs[rows, x + at] == ord(" ")
    canvas.glyphs[rows[blank], x + at[blank]] = glyph
    canvas.inks[rows[blank], x + at[blank]] = ink


def sparkline(canvas: Canvas, x: int, y: int, level: Int64, ink: int) -> None:
    """One row of bars, level 0 to 8 each; nothing below the canvas."""
    if y >= canvas.height:
        return
    columns = slice(x, x + len(level))
    canvas.glyphs[y, columns] = EIGHTHS[level]
    canvas.inks[y, columns] = ink


def _stack_inks(palette: Palette, colours: tuple[str, str]) -> NDArray[np.uint16]:
    """uint16[chosen, case]: the lower part, the upper part, and the lower before the upper."""
    low, high = colours
    lit = "data-selected"
    return np.array(
        [
            [palette.ink(low), palette.ink(high), palette.ink(low, high)],
            [palette.ink(lit, bold=True), palette.ink(high), palette.ink(lit, high)],
        ],
        np.uint16,
    )


def _colours_row(
    low: Int64, both: Int64, inks: NDArray[np.uint16], chosen: Int64
) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Glyphs and inks of one row: a cell shows two parts only if they fill it."""
    two = (low > 0) & (low < 8) & (both == 8)
    larger_low = 2 * low >= both
    glyphs = EIGHTHS[np.where(two, low, np.where(low == 8, 8, both))]
    case = np.where(two, 2, np.where(larger_low, 0, 1))
    return glyphs, inks[chosen, case]


def _shapes_row(
    low: Int64,
    both: Int64,
    shapes: tuple[str, str],
    inks: NDArray[np.uint16],
    chosen: Int64,
) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """As `_colours_row`, a glyph per part; a part of a cell is drawn in eighths where it can."""
    first, second, lit = ord(shapes[0]), ord(shapes[1]), ord("◆")
    larger_low = 2 * low >= both
    full = np.where(larger_low, np.where(chosen > 0, lit, first), second)
    glyphs = np.where(both >= 6, full, EIGHTHS[both]).astype(np.uint32)
    return glyphs, inks[chosen, np.where(larger_low, 0, 1)]
