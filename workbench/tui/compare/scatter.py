"""TTFT of every request in both runs, on logarithmic axes; on the diagonal they are equal."""

from __future__ import annotations

from collections.abc import Hashable
from math import floor, log10
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from workbench.tui.chart_pane import ChartPane
from workbench.tui.compare.state import CompareState
from workbench.tui.plots import braille
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.store.pairing import common_ttft_ms

Float64 = NDArray[np.float64]


class ScatterPane(ChartPane):
    """Points above the diagonal waited longer in B."""

    EVERY_S: ClassVar[float] = 0.5

    def __init__(self, state: CompareState) -> None:
        super().__init__(id="scatter")
        self._state = state

    def key(self) -> Hashable:
        """As `ChartPane.key`."""
        state = self._state
        books = (state.a.store.requests, state.b.store.requests)
        return tuple(book.version for book in books), id(state.a), state.player.selected_request

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        state = self._state
        ids, a, b = common_ttft_ms(state.a.store.requests, state.b.store.requests)
        if not len(ids) or canvas.height < 4:
            self.empty(
                canvas, palette, "TTFT of each request",
                "comes with the first token that both runs have",
            )  # fmt: skip
            return
        later = int(np.count_nonzero(b > a * 1.01))
        sooner = int(np.count_nonzero(b < a * 0.99))
        x = self.title(canvas, palette, "TTFT", "per request, ms  ")
        x = canvas.text(x, 0, f"{later:,} later", palette.ink("data-higher", bold=True))
        canvas.text(x + 1, 0, f"{sooner:,} sooner", palette.ink("data-lower", bold=True))
        low = max(float(min(a.min(), b.min())), 1e-3)
        high = max(float(max(a.max(), b.max())), low * 1.1)
        box = (7, 1, canvas.width - 8, canvas.height - 2)
        self._plot(canvas, palette, box, (low, high), (ids, a, b))
        self._axes(canvas, palette, box, low, high)

    def _plot(
        self,
        canvas: Canvas,
        palette: Palette,
        box: tuple[int, int, int, int],
        bounds: tuple[float, float],
        points: tuple[NDArray[np.int64], Float64, Float64],
    ) -> None:
        ids, a, b = points
        low, high = bounds
        span = np.log(high / low)
        across, up = (np.log(np.maximum(v, low) / low) / span for v in (a, b))
        diagonal = np.linspace(0, 1, 4 * max(box[2], box[3]))
        braille.scatter(canvas, *box, (diagonal, diagonal), palette.ink("data-axis"))
        near = np.abs(np.log(np.maximum(b, 1e-9) / np.maximum(a, 1e-9))) <= 0.01
        for chosen, colour in (
            (near, "data-future"),
            (~near & (b < a), "data-lower"),
            (~near & (b > a), "data-higher"),
        ):
            ink = palette.ink(colour)
            braille.scatter(canvas, *box, (across[chosen], up[chosen]), ink)
        mine = ids == self._state.player.selected_request
        braille.scatter(
            canvas, *box, (across[mine], up[mine]), palette.ink("data-selected", bold=True)
        )

    def _axes(
        self,
        canvas: Canvas,
        palette: Palette,
        box: tuple[int, int, int, int],
        low: float,
        high: float,
    ) -> None:
        """Powers of ten along both axes."""
        x0, y0, width, height = box
        dim = palette.ink("data-axis")
        span = log10(high / low)
        y = y0 + height
        canvas.right(x0 - 1, y0 + height - 1, "B", palette.ink("data-step", bold=True))
        canvas.text(x0 - 2, y, "A", palette.ink("data-past", bold=True))
        for power in range(floor(log10(low)), floor(log10(high)) + 1):
            share = (power - log10(low)) / span
            if not 0 <= share <= 1:
                continue
            label = f"{10**power:,g}"
            at = x0 + min(int(share * width), width - len(label))
            canvas.text(at, y, label, dim)
            row = y0 + min(int((1 - share) * height), height - 1)
            if row < y0 + height - 1:
                canvas.right(x0 - 1, row, label, dim)
