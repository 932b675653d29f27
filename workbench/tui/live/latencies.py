"""Percentiles of the last requests, and the queue, the batch and the memory over the strip."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar, Final

import numpy as np

from workbench.tui.chart_pane import ChartPane
from workbench.tui.live.state import LiveState
from workbench.tui.plots import bars
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.store.latency_window import REQUESTS, STEPS, LatencyRow, latency_rows
from workbench.tui.store.strip_window import StripWindow, strip_window

_NAME: Final = 5
_WORD: Final = 8
_GOOD_PERCENT: Final = 99.0
_LINES: Final = (
    ("queue", "waiting", "data-queue"),
    ("running", "running", "data-decode"),
    ("cached", "cached_pages", "data-hit"),
)


class LatencyPane(ChartPane, can_focus=True):
    """Exact percentiles twice a second, sparklines at the rate of the screen."""

    EVERY_S: ClassVar[float] = 0.0

    def __init__(self, state: LiveState) -> None:
        super().__init__(id="latency")
        self._state = state
        self._rows: tuple[object, tuple[LatencyRow, ...]] | None = None
        self._computed_at = (-1, -1)
        self._frames = 0

    def key(self) -> Hashable:
        """As `ChartPane.key`."""
        return self._state.key(), self._state.player.playing

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        player = self._state.player
        if player.empty:
            self.empty(canvas, palette, "latency", "percentiles come with the first token")
            return
        about = f"ms, last {REQUESTS} req / {STEPS} steps"
        if len(self._state.store.replicas) > 1:
            about += f", replica {player.replica}"
        self.title(canvas, palette, "latency", about)
        y = 1
        if canvas.height >= 5:
            y = self._table(canvas, palette, 1)
        self._lines(canvas, palette, y)

    def _figures(self) -> tuple[LatencyRow, ...]:
        """Of the cursor; while it moves, at most every 15 frames, as percentiles cost time."""
        player = self._state.player
        key = (player.replica, player.position)
        self._frames += 1
        moving = player.playing or player.following
        if self._rows is None or (self._rows[0] != key and (not moving or self._frames >= 15)):
            self._frames = 0
            self._rows = (key, latency_rows(self._state.store, player.log, player.position))
        return self._rows[1]

    def _table(self, canvas: Canvas, palette: Palette, y: int) -> int:
        dim = palette.ink("data-axis")
        width = min((canvas.width - _NAME - 6) // 4, 10)
        for i, word in enumerate(("p50", "p90", "p99", "max")):
            canvas.right(_NAME + (i + 1) * width, y, word, dim)
        end = _NAME + 4 * width + 5
        canvas.right(end, y, "SLO", dim)
        rows = self._figures()
        if canvas.height < 8:
            rows = tuple(row for row in rows if row.name in ("TTFT", "ITL"))
        for row in rows:
            y += 1
            canvas.text(0, y, row.name, palette.ink(bold=True))
            for i, figure in enumerate(row.percentiles_ms):
                over = row.slo_ms is not None and figure is not None and figure > row.slo_ms
                ink = palette.ink("data-bad", bold=True) if over else palette.ink()
                canvas.right(_NAME + (i + 1) * width, y, _ms(figure), ink)
            if row.kept_percent is not None:
                good = row.kept_percent >= _GOOD_PERCENT
                ink = palette.ink("data-good" if good else "data-bad", bold=True)
                canvas.right(end, y, f"{row.kept_percent:.0f}%", ink)
        return y + 1

    def _lines(self, canvas: Canvas, palette: Palette, y: int) -> None:
        """Sparklines over the columns of the strip, as high as there is room."""
        window = strip_window(self._state.player, max(canvas.width - _WORD - 9, 1))
        rows = canvas.height - y
        if window is None or rows < 1:
            return
        shown = _LINES[: min(rows, len(_LINES))]
        height, spare = divmod(rows, len(shown))
        for i, (word, name, colour) in enumerate(shown):
            lines = min(height + (i < spare), 4)
            self._line(canvas, palette, y, lines, window, (word, name, colour))
            y += lines

    def _line(
        self,
        canvas: Canvas,
        palette: Palette,
        y: int,
        height: int,
        window: StripWindow,
        line: tuple[str, str, str],
    ) -> None:
        word, name, colour = line
        values = window.mean[name]
        top = max(float(values.max()), 1.0)
        player = self._state.player
        now = player.steps.at(player.position)[name]
        bottom = y + height - 1
        canvas.text(0, bottom, word, palette.ink("data-axis"))
        left = canvas.width - 9 - len(values)
        level = bars.eighths(values, top, height)
        shape = {"data-queue": "▒", "data-decode": "█", "data-hit": "░"}[colour]
        if left >= 0 and np.any(level):  # else there is no room beside the number
            bars.bars(canvas, palette, left, y, height, level, colour, shape)
        canvas.right(canvas.width - 1, bottom, f"{now:,}", palette.ink(bold=True))
        if height > 1 and top > now:
            canvas.right(canvas.width - 1, y, f"{top:,.0f}", palette.ink("data-axis"))


def _ms(figure: float | None) -> str:
    if figure is None:
        return "-"
    return f"{figure:,.1f}" if figure < 1000 else f"{figure:,.0f}"
