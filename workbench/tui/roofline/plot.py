"""The roofline itself: both axes logarithmic, a letter for each class, dots where it has been."""

from __future__ import annotations

from collections.abc import Hashable
from math import floor, log10
from typing import Final, NamedTuple

import numpy as np

from workbench.profile.ceilings import Ceilings
from workbench.profile.roofline import Point, Roofline
from workbench.tui.chart_pane import ChartPane
from workbench.tui.plots import braille
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.roofline.colours import COLOUR_OF
from workbench.tui.roofline.state import LETTERS, RooflineState

_LEFT, _BELOW = 7, 2  # cells for the names of ticks
_LOW_X, _HIGH_X = 0.3, 30_000.0  # FLOP per byte: the same for all steps, so that points move
_DECADES: Final = 3.3  # of TFLOP/s
_LEAST_WIDTH, _LEAST_HEIGHT = 24, 8


class Box(NamedTuple):
    """Where the plot is, in cells, and what its axes span, in powers of ten."""

    x: int
    y: int
    width: int
    height: int
    low_x: float
    high_x: float
    low_y: float
    high_y: float

    def share(self, intensity: float, tflop_s: float) -> tuple[float, float]:
        """The place of a point, as shares from the lower left corner."""
        across = (log10(intensity) - self.low_x) / (self.high_x - self.low_x)
        return across, (log10(tflop_s) - self.low_y) / (self.high_y - self.low_y)

    def cell(self, intensity: float, tflop_s: float) -> tuple[int, int]:
        """The cell of a point; those outside are at the edge."""
        across, up = self.share(intensity, tflop_s)
        column = min(max(round(across * (self.width - 1)), 0), self.width - 1)
        row = min(max(round((1 - up) * (self.height - 1)), 0), self.height - 1)
        return self.x + column, self.y + row


class PlotPane(ChartPane):
    """The plot of the step under the cursor."""

    def __init__(self, state: RooflineState) -> None:
        super().__init__(id="plot")
        self._state = state

    def key(self) -> Hashable:
        """As `ChartPane.key`."""
        return self._state.key(), self._state.player.head >= 0

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        found = self._state.now()
        if found is None:
            self.empty(canvas, palette, "roofline", *self._state.why_not())
            return
        if canvas.width < _LEAST_WIDTH or canvas.height < _LEAST_HEIGHT:
            self.empty(canvas, palette, "roofline", "needs a larger pane: z")
            return
        top = found.ceilings
        about = f"TFLOP/s over FLOP/byte; ridge at {top.ridge:,.0f}"
        self.title(canvas, palette, "roofline", about)
        high_y = log10(top.tflop_s) + 0.15
        box = Box(_LEFT, 1, canvas.width - _LEFT - 1, canvas.height - 1 - _BELOW,
                  log10(_LOW_X), log10(_HIGH_X), high_y - _DECADES, high_y)  # fmt: skip
        _axes(canvas, palette, box)
        _roof(canvas, palette, box, top)
        _trail(canvas, palette, box, self._state.trail())
        _letters(canvas, palette, box, found)


def _axes(canvas: Canvas, palette: Palette, box: Box) -> None:
    dim = palette.ink("data-axis")
    for power in range(floor(box.low_y) + 1, floor(box.high_y) + 1):
        _, y = box.cell(1.0, 10.0**power)
        canvas.right(box.x - 1, y, _rate(power), dim)
    y = box.y + box.height
    for power in range(floor(box.low_x) + 1, floor(box.high_x) + 1):
        x, _ = box.cell(10.0**power, 1.0)
        label = f"{10**power:,}" if power >= 0 else f"{10.0**power:g}"
        canvas.text(min(x, canvas.width - len(label)), y, label, dim)
    canvas.right(canvas.width - 1, y + 1, "FLOP/byte", dim)


def _rate(power: int) -> str:
    return f"{10.0**power:g} T" if power < 3 else f"{10.0 ** (power - 3):g} P"


def _roof(canvas: Canvas, palette: Palette, box: Box, top: Ceilings) -> None:
    x = np.logspace(box.low_x, box.high_x, 4 * box.width)
    across = np.linspace(0, 1, len(x))
    place = (box.x, box.y, box.width, box.height)
    for roof in filter(None, (top.plain, top)):
        heights = np.minimum(roof.tflop_s, roof.tb_s * x)
        up = (np.log10(heights) - box.low_y) / (box.high_y - box.low_y)
        colour = "data-limit" if roof is top else "data-future"
        braille.scatter(canvas, *place, (across, up), palette.ink(colour))
    ridge, _ = box.share(top.ridge, 1.0)
    line = np.linspace(0, 1, 2 * box.height)
    braille.scatter(canvas, *place, (np.full_like(line, ridge), line), palette.ink("data-future"))


def _trail(canvas: Canvas, palette: Palette, box: Box, rooflines: list[Roofline]) -> None:
    """Where the classes were in the steps before, in the colours of their ranges."""
    by_group: dict[str, list[tuple[float, float]]] = {}
    for roofline in rooflines:
        for point in _placed(roofline):
            place = box.share(point.intensity, point.tflop_s)
            by_group.setdefault(point.group, []).append(place)
    for group, places in by_group.items():
        across, up = np.array(places).T
        ink = palette.ink(COLOUR_OF[group])
        braille.scatter(canvas, box.x, box.y, box.width, box.height, (across, up), ink)


def _placed(roofline: Roofline) -> list[Point]:
    return [point for point in roofline.points if point.flops and point.num_bytes]


def _letters(canvas: Canvas, palette: Palette, box: Box, found: Roofline) -> None:
    """The letters of the table; classes in one place stand beside each other."""
    taken: set[tuple[int, int]] = set()
    for letter, point in zip(LETTERS, found.points, strict=False):
        if not point.flops or not point.num_bytes:
            continue
        x, y = box.cell(point.intensity, point.tflop_s)
        while (x, y) in taken and x < canvas.width - 1:
            x += 1
        taken.add((x, y))
        canvas.text(x, y, letter, palette.ink("background", COLOUR_OF[point.group], bold=True))
