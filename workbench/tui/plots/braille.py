"""Points and lines in braille: two by four dots to a cell."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from workbench.tui.plots.canvas import Canvas

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_FIRST: Final = 0x2800
_DOTS: Final = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], np.uint32)


def scatter(
    canvas: Canvas,
    x: int,
    y: int,
    width: int,
    height: int,
    points: tuple[Float64, Float64],
    ink: int,
) -> None:
    """Draw points whose coordinates are shares of the rectangle, (0, 0) its lower left corner.

    Points outside are left out; cells without points keep what is drawn there.
    """
    across, up = points
    inside = (across >= 0) & (across <= 1) & (up >= 0) & (up <= 1)
    column = np.minimum(across[inside] * 2 * width, 2 * width - 1).astype(np.int64)
    row = np.minimum((1 - up[inside]) * 4 * height, 4 * height - 1).astype(np.int64)
    _put(canvas, (x, y, width, height), column, row, ink)


def line(
    canvas: Canvas,
    x: int,
    y: int,
    width: int,
    height: int,
    values: Float64,
    ink: int,
) -> None:
    """Draw a series, shares of the height, over the whole width; NaN leaves a gap.

    With more values than dots each column spans the lowest and the highest of its values, so no
    peak is lost.
    """
    if not len(values):
        return
    dots = 2 * width
    starts = np.unique(np.arange(dots) * len(values) // dots)
    low, high = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    at = starts * dots // len(values)
    known = ~np.isnan(low)
    top = np.clip(((1 - high[known]) * (4 * height - 1)).round(), 0, 4 * height - 1)
    bottom = np.clip(((1 - low[known]) * (4 * height - 1)).round(), 0, 4 * height - 1)
    length = (bottom - top).astype(np.int64) + 1
    column = np.repeat(at[known], length)
    offset = np.arange(len(column)) - np.repeat(np.cumsum(length) - length, length)
    row = np.repeat(top.astype(np.int64), length) + offset
    _put(canvas, (x, y, width, height), column, row, ink)


def _put(
    canvas: Canvas,
    box: tuple[int, int, int, int],
    column: Int64,
    row: Int64,
    ink: int,
) -> None:
    x, y, width, height = box
    bits = np.zeros((height, width), np.uint32)
    np.bitwise_or.at(bits, (row // 4, column // 2), _DOTS[row % 4, column % 2])
    drawn = bits > 0
    rows, columns = slice(y, y + height), slice(x, x + width)
    canvas.glyphs[rows, columns][drawn] = bits[drawn] + _FIRST
    canvas.inks[rows, columns][drawn] = ink
