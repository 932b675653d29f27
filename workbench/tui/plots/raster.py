"""Categories as pixels: two to a cell in colour, one glyph a cell without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette

Int64 = NDArray[np.int64]
_UPPER_HALF: Final = ord("▀")


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of pixel: its colour, and its glyph where there are no colours."""

    colour: str
    shape: str


def pixel_rows(palette: Palette, height: int) -> int:
    """Rows of pixels that fit into so many rows of cells."""
    return height if palette.shapes else 2 * height


def draw(
    canvas: Canvas,
    palette: Palette,
    x: int,
    y: int,
    pixels: Int64,
    categories: tuple[Category, ...],
) -> None:
    """Draw pixels.

    Args:
        canvas: to draw on.
        palette: decides how.
        x: left edge.
        y: upper edge.
        pixels: int64[rows, columns] with `rows` as `pixel_rows` gives; index of the category of
            each, -1 draws nothing.
        categories: what the numbers stand for.
    """
    if palette.shapes:
        _draw_shapes(canvas, palette, x, y, pixels, categories)
    else:
        _draw_halves(canvas, palette, x, y, pixels, categories)


def _draw_shapes(
    canvas: Canvas,
    palette: Palette,
    x: int,
    y: int,
    pixels: Int64,
    categories: tuple[Category, ...],
) -> None:
    glyphs = np.array([ord(c.shape) for c in categories] + [ord(" ")], np.uint32)
    inks = np.array([palette.ink(c.colour) for c in categories] + [0], np.uint16)
    rows, columns = slice(y, y + len(pixels)), slice(x, x + pixels.shape[1])
    canvas.glyphs[rows, columns] = glyphs[pixels]
    canvas.inks[rows, columns] = inks[pixels]


def _draw_halves(
    canvas: Canvas,
    palette: Palette,
    x: int,
    y: int,
    pixels: Int64,
    categories: tuple[Category, ...],
) -> None:
    upper, lower = pixels[0::2], pixels[1::2]
    count = len(categories) + 1
    pairs, at = np.unique((upper % count) * count + lower % count, return_inverse=True)
    names = [*(c.colour for c in categories), None]
    inks = np.array([_pair(palette, names[p // count], names[p % count]) for p in pairs.tolist()])
    rows, columns = slice(y, y + len(upper)), slice(x, x + pixels.shape[1])
    canvas.glyphs[rows, columns] = _UPPER_HALF
    canvas.inks[rows, columns] = inks[at.reshape(upper.shape)]


def _pair(palette: Palette, upper: str | None, lower: str | None) -> int:
    """The ink of a cell with these two pixels; one that draws nothing takes the background."""
    return palette.ink(upper or "background", lower or "background")
