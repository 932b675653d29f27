"""A rectangle of cells, each a glyph and an ink, and the lines that Textual draws of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from textual.strip import Strip

from workbench.tui.plots.palette import NORMAL, Palette

Glyphs = NDArray[np.uint32]
Inks = NDArray[np.uint16]
_BLANK = ord(" ")


@dataclass(slots=True)
class Canvas:
    """Cells to draw on; row 0 is at the top.

    Attributes:
        width, height: in cells.
        glyphs: uint32[height, width], code points, each one cell wide.
        inks: uint16[height, width], numbers of `Palette.ink`.
    """

    width: int
    height: int
    glyphs: Glyphs = field(init=False)
    inks: Inks = field(init=False)

    def __post_init__(self) -> None:
        self.glyphs = np.full((self.height, self.width), _BLANK, np.uint32)
        self.inks = np.full((self.height, self.width), NORMAL, np.uint16)

    def text(self, x: int, y: int, text: str, ink: int = NORMAL, limit: int | None = None) -> int:
        """Write text from a cell on, cut off at `limit` or the edge; returns the x after it."""
        if not 0 <= y < self.height:
            return x
        end = min(self.width, x + len(text), self.width if limit is None else limit)
        if x < 0 or end <= x:
            return max(x, 0)
        self.glyphs[y, x:end] = np.frombuffer(text[: end - x].encode("utf-32-le"), np.uint32)
        self.inks[y, x:end] = ink
        return end

    def right(self, x: int, y: int, text: str, ink: int = NORMAL) -> None:
        """Write text that ends before column x, cut off on its left at the edge."""
        start = x - len(text)
        self.text(max(start, 0), y, text[max(-start, 0) :], ink, x)

    def line(self, x: int, y: int, parts: list[tuple[str, int]], limit: int | None = None) -> int:
        """Write pieces of text one after the other; returns the x after them."""
        for text, ink in parts:
            x = self.text(x, y, text, ink, limit)
        return x

    def fill(self, x: int, y: int, width: int, height: int, glyph: str, ink: int) -> None:
        """Fill a rectangle, cut off at the edges."""
        rows, columns = slice(max(y, 0), y + height), slice(max(x, 0), x + width)
        self.glyphs[rows, columns] = ord(glyph)
        self.inks[rows, columns] = ink

    def changed_rows(self, other: Canvas | None) -> NDArray[np.bool_]:
        """bool[height], rows in which this canvas differs from another."""
        if other is None or other.glyphs.shape != self.glyphs.shape:
            return np.ones(self.height, np.bool_)
        differs = (self.glyphs != other.glyphs) | (self.inks != other.inks)
        rows: NDArray[np.bool_] = differs.any(axis=1)
        return rows

    def strip(self, y: int, palette: Palette) -> Strip:
        """One row as a line, a segment for each stretch of one ink."""
        inks = self.inks[y]
        cuts = np.flatnonzero(inks[1:] != inks[:-1]) + 1
        text = self.glyphs[y].tobytes().decode("utf-32-le")
        bounds = [0, *cuts.tolist(), self.width]
        styles = palette.styles
        first = inks[np.asarray(bounds[:-1])].tolist() if self.width else []
        segments = [
            Segment(text[start:end], styles[ink])
            for start, end, ink in zip(bounds, bounds[1:], first, strict=False)
        ]
        return Strip(segments, self.width)
