"""Categories as pixels: two to a cell in colour, one glyph a cell without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette

Int64 = NDArray[np.int64]
Glyphs = NDArray[np.uint32] | np.uint32
Inks = NDArray[np.uint16]
_UPPER_HALF: Final = ord("▀")


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of pixel: its colour, and its glyph where there are no colours."""

    colour: str
    shape: str


def pixel_rows(palette: Palette, height: int) -> int:
    """Rows of pixels that fit into so many rows of cells."""
    return height if palette.shapes else 2 * height


@dataclass(frozen=True, slots=True)
class Raster:
    """Pixels to draw.

    Attributes:
        pixels: int64[rows, columns] with `rows` as `pixel_rows` gives; index of the category of
            each, -1 draws nothing.
        categories: what the numbers stand for.
    """

    pixels: Int64
    categories: tuple[Category, ...]

    def draw(self, canvas: Canvas, palette: Palette, x: int, y: int) -> None:
        """Draw with the upper left corner at (x, y); the palette decides how."""
        glyphs, inks = self._shapes(palette) if palette.shapes else self._halves(palette)
        rows, columns = slice(y, y + len(inks)), slice(x, x + inks.shape[1])
        canvas.glyphs[rows, columns] = glyphs
        canvas.inks[rows, columns] = inks

    def _shapes(self, palette: Palette) -> tuple[Glyphs, Inks]:
        glyphs = np.array([ord(c.shape) for c in self.categories] + [ord(" ")], np.uint32)
        inks = np.array([palette.ink(c.colour) for c in self.categories] + [0], np.uint16)
        return glyphs[self.pixels], inks[self.pixels]

    def _halves(self, palette: Palette) -> tuple[Glyphs, Inks]:
        upper, lower = self.pixels[0::2], self.pixels[1::2]
        names = [*(c.colour for c in self.categories), None]
        count = len(names)
        pairs, at = np.unique((upper % count) * count + lower % count, return_inverse=True)
        inks = [_pair(palette, names[p // count], names[p % count]) for p in pairs.tolist()]
        return np.uint32(_UPPER_HALF), np.array(inks, np.uint16)[at.reshape(upper.shape)]


def _pair(palette: Palette, upper: str | None, lower: str | None) -> int:
    """The ink of a cell with these two pixels; one that draws nothing takes the background."""
    return palette.ink(upper or "background", lower or "background")
