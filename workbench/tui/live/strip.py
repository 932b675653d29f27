"""The batch strip: what each step computed, how many requests decoded, and how long it took.

Three lanes with scales of their own: on one axis of tokens, eighty decoding requests would vanish
beside a prefill of thousands.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from textual import events

from workbench.tui.chart_pane import ChartPane, StepChosen
from workbench.tui.live.state import LiveState
from workbench.tui.plots import bars
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.store.strip_window import NS_PER_MS, StripWindow, round_up, strip_window

LABEL: Final = 8  # columns of the scale on the left

Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Lanes:
    """Rows of each lane; the event row and the axis take one each."""

    tokens: int
    decode: int
    step: int

    @classmethod
    def of(cls, height: int) -> Lanes:
        """Shared out over so many rows; the lane of ms goes first where there are few."""
        rows = max(height - 2, 1)
        if rows < 4:
            return cls(max(rows - 1, 1), min(rows - 1, 1), 0)
        small = 1 if rows < 8 else 2 if rows < 14 else 3
        return cls(rows - 2 * small, small, small)


class StripPane(ChartPane):
    """The lanes, newest step on the right: the one under the cursor."""

    DEFAULT_CSS = """
    StripPane { height: 13; }
    """

    def __init__(self, state: LiveState) -> None:
        super().__init__(id="strip")
        self._state = state
        self._window: StripWindow | None = None
        self._left = LABEL

    def key(self) -> Hashable:
        """As `ChartPane.key`."""
        return self._state.key(), tuple(self._state.player.marks), self._state.player.head < 0

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        player = self._state.player
        self._window = window = strip_window(player, canvas.width - LABEL)
        if window is None:
            about = "the strip fills with the first step" if player.store.records("steps") else (
                "this run was recorded with --detail none; --detail steps fills this pane"
            )  # fmt: skip
            self.empty(canvas, palette, "batch", about)
            return
        self._left = canvas.width - len(window)
        lanes = Lanes.of(canvas.height)
        chosen = self._state.chosen_steps()
        none = np.zeros(len(window), np.bool_)
        lit = (none, none) if chosen is None else chosen.in_columns(window.first, window.last)
        self._tokens(canvas, palette, window, lanes, lit[0])
        self._decode(canvas, palette, window, lanes, lit[1])
        if lanes.step:
            self._step_ms(canvas, palette, window, lanes)
        row = lanes.tokens + lanes.decode + lanes.step
        if row + 1 < canvas.height:
            self._events(canvas, palette, window, row)
            self._axis(canvas, palette, window, row + 1)

    def _tokens(
        self, canvas: Canvas, palette: Palette, window: StripWindow, lanes: Lanes, lit: Bool
    ) -> None:
        prefill, hit = window.mean["prefill_tokens"], window.mean["hit_tokens"]
        peak = window.peak["prefill_tokens"]
        top = round_up(max(float((prefill + hit).max()), float(peak.max()), 1.0))
        height = lanes.tokens
        low = bars.eighths(prefill, top, height)
        both = np.maximum(bars.eighths(prefill + hit, top, height), low)
        budget = self._state.player.log.facts.max_num_batched_tokens
        if budget <= top:
            self._limit(canvas, palette, 0, height, budget / top, len(window))
        colours = ("data-prefill", "data-hit")
        bars.stack(canvas, palette, self._left, 0, height, low, both, colours, lit=lit)
        level = np.where(window.last - window.first > 1, bars.eighths(peak, top, height), 0)
        bars.ticks(canvas, self._left, 0, height, level, palette.ink("data-prefill"))
        self._scale(canvas, palette, 0, height, f"{top:,}", "tok")

    def _decode(
        self, canvas: Canvas, palette: Palette, window: StripWindow, lanes: Lanes, lit: Bool
    ) -> None:
        running = window.mean["decode_requests"]
        top = max(float(window.peak["decode_requests"].max()), 1.0)
        level = bars.eighths(running, top, lanes.decode)
        y = lanes.tokens
        bars.bars(canvas, palette, self._left, y, lanes.decode, level, "data-decode", "█")
        bars.baseline(canvas, palette, self._left, y + lanes.decode - 1, level, "data-decode", lit)
        self._scale(canvas, palette, y, lanes.decode, f"{top:,.0f}", "seqs")

    def _step_ms(self, canvas: Canvas, palette: Palette, window: StripWindow, lanes: Lanes) -> None:
        mean = window.mean["period_ns"] / NS_PER_MS
        busy = mean[mean > 0]
        top = float(busy.max()) if len(busy) else 1.0
        y, height = lanes.tokens + lanes.decode, lanes.step
        level = bars.eighths(mean, top, height)
        slo = self._state.store.header.slo.tpot_ms
        if slo is not None and slo <= top:
            self._limit(canvas, palette, y, height, slo / top, len(window))
        bars.bars(canvas, palette, self._left, y, height, level, "data-step", "▒")
        self._scale(canvas, palette, y, height, f"{top:,.1f}", "ms")

    def _limit(
        self, canvas: Canvas, palette: Palette, y: int, height: int, share: float, width: int
    ) -> None:
        """A dashed line at a share of a lane's height."""
        row = y + min(int((1 - share) * height), height - 1)
        columns = slice(self._left, self._left + width)
        canvas.glyphs[row, columns] = ord("╌")
        canvas.inks[row, columns] = palette.ink("data-same")

    def _scale(
        self, canvas: Canvas, palette: Palette, y: int, height: int, top: str, unit: str
    ) -> None:
        dim = palette.ink("data-axis")
        if height == 1:
            canvas.right(LABEL - 1, y, f"{top} {unit}"[: LABEL - 1], dim)
            return
        canvas.right(LABEL - 1, y, top, palette.ink("foreground"))
        canvas.right(LABEL - 1, y + 1, unit, dim)

    def _events(self, canvas: Canvas, palette: Palette, window: StripWindow, y: int) -> None:
        canvas.right(LABEL - 1, y, "ev", palette.ink("data-axis"))
        marks = np.asarray(self._state.player.marks, np.int64)
        marked = np.searchsorted(marks, window.last) > np.searchsorted(marks, window.first)
        for here, glyph, ink in (
            (window.total["evicted_pages"] > 0, "·", palette.ink("data-step", bold=True)),
            (window.total["retracted"] > 0, "v", palette.ink("data-preempt", bold=True)),
            (marked, "▾", palette.ink("data-selected", bold=True)),
        ):
            at = self._left + np.flatnonzero(here)
            canvas.glyphs[y, at] = ord(glyph)
            canvas.inks[y, at] = ink

    def _axis(self, canvas: Canvas, palette: Palette, window: StripWindow, y: int) -> None:
        player, dim = self._state.player, palette.ink("data-axis")
        start, end = f"{window.start_ns / 1e9:,.2f} s", f"{window.end_ns / 1e9:,.2f} s"
        x = canvas.text(self._left, y, start, dim)
        canvas.right(canvas.width, y, end, dim)
        if player.by_time:
            width = f"{window.column_ns / NS_PER_MS:g} ms a column"
        else:
            count = 1 << player.zoom
            width = "1 step a column" if count == 1 else f"{count:,} steps a column"
        legend = [
            (width, palette.ink()), ("  ", dim),
            *_key(palette, "data-prefill", "▓", "prefill"), *_key(palette, "data-hit", "░", "hit"),
            *_key(palette, "data-decode", "█", "decode"), *_key(palette, "data-step", "▒", "ms"),
            ("v ", palette.ink("data-preempt", bold=True)), ("retracted  ", dim),
            ("· ", palette.ink("data-step", bold=True)), ("evicted", dim),
        ]  # fmt: skip
        room = canvas.width - len(end) - 2 - x - 2
        while sum(len(text) for text, _ in legend) > room and len(legend) > 1:
            legend = legend[:-2]
        length = sum(len(text) for text, _ in legend)
        canvas.line(x + 2 + max((room - length) // 2, 0), y, legend, canvas.width - len(end) - 1)

    def _column(self, x: int) -> int | None:
        window = self._window
        at = x - self._left
        return at if window is not None and 0 <= at < len(window) else None

    def on_click(self, event: events.Click) -> None:
        """Go to the heaviest step of the column."""
        at = self._column(event.x)
        if at is not None and self._window is not None and self._window.heaviest[at] >= 0:
            self.post_message(StepChosen(int(self._window.heaviest[at])))

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Say what the column holds."""
        at, window = self._column(event.x), self._window
        if at is None or window is None:
            self.tooltip = None
            return
        self.tooltip = _says(window, at)


def _says(window: StripWindow, at: int) -> str:
    first, last = int(window.first[at]), int(window.last[at]) - 1
    if last < first:
        return "no step ended in this time"
    steps = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}, mean of each"
    return "\n".join(
        (
            steps,
            (
                f"prefill {window.mean['prefill_tokens'][at]:,.0f} tok"
                f" + {window.mean['hit_tokens'][at]:,.0f} from the cache"
            ),
            f"decode {window.mean['decode_requests'][at]:,.0f} requests",
            (
                f"{window.mean['period_ns'][at] / NS_PER_MS:,.2f} ms,"
                f" at most {window.peak['period_ns'][at] / NS_PER_MS:,.2f}"
            ),
            (
                f"{int(window.total['retracted'][at])} retracted,"
                f" {int(window.total['evicted_pages'][at])} pages evicted"
            ),
        )
    )


def _key(palette: Palette, colour: str, shape: str, word: str) -> list[tuple[str, int]]:
    glyph = shape if palette.shapes else "█"
    return [(glyph, palette.ink(colour)), (f" {word}  ", palette.ink("data-axis"))]
