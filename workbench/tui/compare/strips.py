"""The two batch strips: B beside A, column by column as the lock says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from textual import events

from workbench.tui.chart_pane import StepChosen
from workbench.tui.compare.pair_pane import PairPane
from workbench.tui.compare.state import CompareState
from workbench.tui.plots import bars
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.store.pairing import NONE, Pairing
from workbench.tui.store.step_log import StepLog
from workbench.tui.store.strip_window import StripWindow, round_up, window_at

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

LABEL: Final = 8
_SERIES: Final = ("prefill_tokens", "hit_tokens", "decode_requests")


@dataclass(frozen=True, slots=True)
class _Side:
    """Means per step of each column; NaN where the run has none."""

    prefill: Float64
    hit: Float64
    decode: Float64


class StripPair(PairPane):
    """A above B, on one scale, so that heights can be compared."""

    DEFAULT_CSS = "StripPair { height: 14; }"

    def __init__(self, state: CompareState) -> None:
        super().__init__(state, id="strips")
        self.window: StripWindow | None = None
        self._left = LABEL

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        state = self._state
        if state.empty:
            self.empty(canvas, palette, "batches", *_why_empty(state))
            return
        self.window = window = columns_of(state, canvas.width)
        self._left = canvas.width - len(window)
        a = _Side(*(window.mean[name] for name in _SERIES))
        b = _side_of_b(state.pairing(), window)
        top = round_up(max(_most(a), _most(b), 1.0))
        most = max(_highest(a.decode), _highest(b.decode), 1.0)
        half = canvas.height // 2
        for name, side, y, height in (("A", a, 0, half), ("B", b, half, canvas.height - half)):
            self._strip(canvas, palette, (y, height), name, side, (top, most))
        draw_cursor(canvas, palette, self._left, window, state.player.position)

    def _strip(
        self,
        canvas: Canvas,
        palette: Palette,
        rows: tuple[int, int],
        name: str,
        side: _Side,
        scales: tuple[float, float],
    ) -> None:
        y, height = rows
        top, most = scales
        lane = height - 1
        known = ~np.isnan(side.prefill)
        prefill, hit = np.nan_to_num(side.prefill), np.nan_to_num(side.hit)
        low = bars.eighths(prefill, top, lane)
        both = np.maximum(bars.eighths(prefill + hit, top, lane), low)
        bars.stack(canvas, palette, self._left, y, lane, low, both, ("data-prefill", "data-hit"))
        level = bars.eighths(np.nan_to_num(side.decode), most, 1)
        bars.bars(canvas, palette, self._left, y + lane, 1, level, "data-decode", "█")
        gone = self._left + np.flatnonzero(~known)
        canvas.glyphs[y + lane, gone] = ord("╌")
        canvas.inks[y + lane, gone] = palette.ink("data-same")
        badge = palette.ink("background", "data-past" if name == "A" else "data-step", bold=True)
        canvas.text(1, y, f" {name} ", badge)
        dim = palette.ink("data-axis")
        if lane > 1:
            canvas.right(LABEL - 1, y + 1, f"{top:,.0f}", palette.ink())
        if lane > 2:
            canvas.right(LABEL - 1, y + 2, "tok", dim)
        canvas.right(LABEL - 1, y + lane, f"{most:,.0f} seq"[: LABEL - 1], dim)

    def on_click(self, event: events.Click) -> None:
        """Go to the heaviest step of A's column."""
        at = event.x - self._left
        if self.window is not None and 0 <= at < len(self.window):
            self.post_message(StepChosen(int(self.window.heaviest[at])))


def columns_of(state: CompareState, width: int) -> StripWindow:
    """A's columns, as many as fit beside the labels; the cursor's is in the middle if it can be.

    What comes after the cursor is there, too: why runs part shows in what follows.
    """
    player, room = state.player, max(width - LABEL, 1)
    last = min(player.position + ((room // 2) << player.zoom), player.head)
    if player.playing or player.following:
        last = player.position
    return window_at(player.steps, last, room, player.zoom)


def draw_cursor(
    canvas: Canvas, palette: Palette, left: int, window: StripWindow, position: int
) -> None:
    """A line down through what is empty in the cursor's column."""
    at = left + int(np.searchsorted(window.last, position, side="right"))
    if at < canvas.width:
        blank = canvas.glyphs[:, at] == ord(" ")
        canvas.glyphs[blank, at] = ord("│")
        canvas.inks[blank, at] = palette.ink("data-cursor")


def _side_of_b(pairing: Pairing, window: StripWindow) -> _Side:
    first, last = pairing.columns_of_b(window.first, window.last)
    return _Side(*(_means(pairing.b, name, first, last) for name in _SERIES))


def _means(steps: StepLog, name: str, first: Int64, last: Int64) -> Float64:
    """Mean of a series over positions [first, last) of each column; NaN where there are none."""
    known = first != NONE
    found = np.full(len(first), np.nan)
    if not known.any():
        return found
    low, high = int(first[known].min()), int(last[known].max())
    values = steps.column(name)[low - steps.first : high - steps.first]
    sums = np.append(0, np.cumsum(values, dtype=np.int64))
    begin, end = first[known] - low, last[known] - low
    found[known] = (sums[end] - sums[begin]) / (end - begin)
    return found


def _most(side: _Side) -> float:
    return _highest(side.prefill + side.hit)


def _highest(values: Float64) -> float:
    return float(np.nanmax(values)) if not np.isnan(values).all() else 0.0


def _why_empty(state: CompareState) -> tuple[str, ...]:
    poor = [run.label for run in (state.a, state.b) if not run.store.records("steps")]
    if poor:
        return (f"recorded with --detail none: {', '.join(poor)}", "--detail steps fills this pane")
    return ("the strips fill with the first steps",)
