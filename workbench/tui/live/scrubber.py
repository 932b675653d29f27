"""The scrubber: the whole run in one line, the cursor in it."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray
from textual import events

from workbench.tui.chart_pane import ChartPane, StepChosen
from workbench.tui.plots import bars
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.store.player import Player

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


class Scrubber(ChartPane):
    """Tokens a step over the run; a click or a drag moves the cursor."""

    DEFAULT_CSS = """
    Scrubber { height: 2; }
    """

    def __init__(self, player: Player) -> None:
        super().__init__(id="scrubber")
        self._player = player
        self._dragging = False
        self._level: tuple[object, Int64] | None = None

    def show(self, player: Player) -> None:
        """Show another run."""
        self._player = player

    def key(self) -> Hashable:
        """As `ChartPane.key`."""
        player = self._player
        return (
            id(player),
            player.replica,
            player.position,
            player.head,
            tuple(player.marks),
            player.loop,
            player.store.status,
        )

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        player, width = self._player, canvas.width
        if player.empty:
            return
        level = self._levels(width)
        y = canvas.height - 1
        cursor = self._column(player.position, width)
        past = np.arange(width) < cursor
        bars.sparkline(canvas, 0, y, level, palette.ink("data-future"))
        canvas.inks[y, past] = palette.ink("data-past")
        if player.loop is not None:
            low, high = (self._column(position, width) for position in player.loop)
            canvas.inks[y, low : high + 1] = palette.ink("data-selected")
        canvas.text(cursor, y, "█", palette.ink("data-cursor", bold=True))
        if canvas.height > 1:
            self._marks(canvas, palette, cursor)

    def _marks(self, canvas: Canvas, palette: Palette, cursor: int) -> None:
        player, dim = self._player, palette.ink("data-axis")
        canvas.text(1, 0, "0 s", dim)
        end_s = player.steps.at(player.head)["end_ns"] / 1e9
        growing = " and going on" if player.store.status == "running" else ""
        whole = f"{end_s:,.1f} s{growing}"
        canvas.right(canvas.width - 1, 0, whole, dim)
        now = f"{player.t_ns / 1e9:,.1f} s"
        start = min(max(cursor - len(now) // 2, 5), canvas.width - len(now) - len(whole) - 3)
        canvas.text(start, 0, now, palette.ink(bold=True))
        for position in player.marks:
            if player.steps.first <= position <= player.head:
                x = self._column(position, canvas.width)
                canvas.text(x, 0, "▾", palette.ink("data-selected", bold=True))

    def _levels(self, width: int) -> Int64:
        """Heights of the bars; made anew only when the run has grown."""
        key = (id(self._player), self._player.replica, self._player.head, width)
        if self._level is None or self._level[0] != key:
            values = self._overview(width)
            level = bars.eighths(values, float(values.max()) or 1.0, 1)
            self._level = (key, np.maximum(level, 1))
        return self._level[1]

    def _overview(self, width: int) -> Float64:
        """Tokens a step, over `width` equal parts of the run, from the coarsest fitting level."""
        steps = self._player.steps
        count = len(steps)
        level = max(int(count // (4 * width)).bit_length() - 1, 0)
        blocks = steps.blocks("tokens", level, steps.first >> level, steps.end)
        mean = blocks.mean
        at = np.arange(width) * len(mean) // width
        if len(mean) <= width:
            return mean[at]
        sums, counts = np.add.reduceat(blocks.sum, at), np.add.reduceat(blocks.count, at)
        return np.asarray(sums / np.maximum(counts, 1))

    def _column(self, position: int, width: int) -> int:
        steps = self._player.steps
        return min((position - steps.first) * width // max(len(steps), 1), width - 1)

    def _go(self, x: int) -> None:
        steps, width = self._player.steps, max(self.size.width, 1)
        if len(steps):
            share = min(max(x, 0), width - 1) / max(width - 1, 1)
            self.post_message(StepChosen(steps.first + round(share * (len(steps) - 1))))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Go there, and follow the mouse while it is held."""
        self._dragging = True
        self.capture_mouse()
        self._go(event.x)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Follow the mouse while it is held."""
        if self._dragging:
            self._go(event.x)

    def on_mouse_up(self, event: events.MouseUp) -> None:
        """Let go."""
        del event
        self._dragging = False
        self.release_mouse()
