"""The divergence strip: B - A in every column, and whether decisions or durations differ."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from workbench.tui.compare.pair_pane import PairPane
from workbench.tui.compare.state import CompareState
from workbench.tui.compare.strips import LABEL, columns_of, draw_cursor
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.store.pairing import DELTAS, ColumnDeltas

Float64 = NDArray[np.float64]

_NAMES: Final = {
    "tokens": "Δtok",
    "running": "Δrun",
    "waiting": "Δwait",
    "used_pages": "Δpages",
}
_SIZES: Final = np.array([ord(glyph) for glyph in "·▂▄▆█"], np.uint32)
_HIGHER: Final = np.array([ord(glyph) for glyph in "·+++▲"], np.uint32)
_LOWER: Final = np.array([ord(glyph) for glyph in "·---▼"], np.uint32)


class DeltaPane(PairPane):
    """A row per quantity: blue where B has less, red where it has more, height for how much."""

    DEFAULT_CSS = "DeltaPane { height: 6; }"

    def __init__(self, state: CompareState) -> None:
        super().__init__(state, id="deltas")

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        state = self._state
        if state.empty:
            return
        window = columns_of(state, canvas.width)
        left = canvas.width - len(window)
        deltas = state.pairing().columns(window.first, window.last)
        shown = DELTAS[: max(canvas.height - 2, 1)]
        for y, name in enumerate(shown):
            self._row(canvas, palette, left, y, name, deltas.mean[name])
        y = len(shown)
        if y < canvas.height:
            self._why(canvas, palette, left, y, deltas)
        if y + 1 < canvas.height:
            self._legend(canvas, palette, y + 1)
        above = Canvas(canvas.width, min(y + 1, canvas.height))
        above.glyphs, above.inks = canvas.glyphs[: y + 1], canvas.inks[: y + 1]
        draw_cursor(above, palette, left, window, state.player.position)

    def _row(
        self, canvas: Canvas, palette: Palette, left: int, y: int, name: str, delta: Float64
    ) -> None:
        dim = palette.ink("data-axis")
        canvas.right(LABEL - 1, y, _NAMES[name], dim)
        size = np.abs(np.nan_to_num(delta))
        most = float(size.max())
        if not most:
            return
        level = np.where(size < 0.5, 0, 1 + np.minimum(size / most * 4, 3.999).astype(np.int64))
        level = np.where((size > 0) | (level > 0), level, -1)
        higher = np.nan_to_num(delta) > 0
        at = np.flatnonzero(level >= 0)
        glyphs = (
            np.where(higher, _HIGHER[level], _LOWER[level]) if palette.shapes else _SIZES[level]
        )
        inks = np.where(higher, palette.ink("data-higher"), palette.ink("data-lower"))
        inks = np.where(level == 0, palette.ink("data-same"), inks)
        canvas.glyphs[y, left + at] = glyphs[at]
        canvas.inks[y, left + at] = inks[at]

    def _why(
        self, canvas: Canvas, palette: Palette, left: int, y: int, deltas: ColumnDeltas
    ) -> None:
        canvas.right(LABEL - 1, y, "why", palette.ink("data-axis"))
        for here, glyph, ink in (
            (deltas.durations, "c", palette.ink("data-step")),
            (deltas.decisions, "D", palette.ink("data-preempt", bold=True)),
        ):
            at = left + np.flatnonzero(here)
            canvas.glyphs[y, at] = ord(glyph)
            canvas.inks[y, at] = ink

    def _legend(self, canvas: Canvas, palette: Palette, y: int) -> None:
        dim = palette.ink("data-axis")
        less, more = ("- ▼ ", "+ ▲ ") if palette.shapes else ("▄ ", "▄ ")
        parts = [
            ("B - A: ", dim), (less, palette.ink("data-lower")), ("B lower  ", dim),
            (more, palette.ink("data-higher")), ("B higher  ", dim),
            ("D ", palette.ink("data-preempt", bold=True)), ("another batch  ", dim),
            ("c ", palette.ink("data-step")), ("same batch, other time   ", dim),
            ("n N", palette.ink("data-warning", bold=True)), (" next, previous difference", dim),
        ]  # fmt: skip
        canvas.line(LABEL, y, parts)
