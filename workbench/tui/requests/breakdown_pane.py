"""Where did the TTFT go: a bar of 100 %, and a line for each part of it that leads to its step."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from textual.binding import Binding, BindingType
from textual.message import Message

from workbench.tui.lines_pane import LinesPane
from workbench.tui.plots.bars import eighths, sparkline
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.plots.short_text import shortened
from workbench.tui.requests.breakdown import Breakdown, Float64, Part

_LABEL_CELLS = 44
_SHORT_LABEL_CELLS = 26


@dataclass(frozen=True, slots=True)
class Detail:
    """What is said of one request.

    Attributes:
        request_id: which.
        heading: facts of it in words.
        breakdown: of its TTFT; None while it is being made, or if it cannot be.
        gaps_ms: between its tokens.
        trouble: why there is no breakdown.
    """

    request_id: int
    heading: str
    breakdown: Breakdown | None
    gaps_ms: Float64
    trouble: str = ""


class BreakdownPane(LinesPane[Part]):
    """The parts of a TTFT; Enter goes to the step that cost most of one."""

    HEADER_ROWS = 3
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "follow", "Go to its step", id="breakdown.follow",
                tooltip="Go to the step that cost most of this part"),
    ]  # fmt: skip

    @dataclass
    class Followed(Message):
        """A part was chosen whose step is known."""

        replica: int
        step: int

    def __init__(self) -> None:
        super().__init__(id="breakdown")
        self._detail: Detail | None = None

    def show(self, detail: Detail | None) -> None:
        """Show a request."""
        same = detail is not None and self._detail is not None
        same = same and detail.request_id == self._detail.request_id  # type: ignore[union-attr]
        self._detail = detail
        self._lines = detail.breakdown.parts if detail and detail.breakdown else ()
        if not same:
            self.top, self.cursor = 0, 0
        self.sync()

    def action_follow(self) -> None:
        """Go to the step of the part under the cursor."""
        if self.line is not None and self.line.step >= 0:
            self.post_message(self.Followed(self.line.replica, self.line.step))

    def draw_header(self, canvas: Canvas, palette: Palette, width: int) -> None:
        detail = self._detail
        if detail is None:
            canvas.text(1, 0, "no request is selected", palette.ink("data-axis"))
            return
        end = canvas.text(1, 0, f"r{detail.request_id}", palette.ink("data-selected", bold=True))
        canvas.text(end + 1, 0, detail.heading, palette.ink(), width)
        found = detail.breakdown
        if found is None:
            for y, line in enumerate(textwrap.wrap(detail.trouble or "…", max(20, width - 2)), 1):
                canvas.text(1, y, line, palette.ink("data-axis"))
            return
        what = "TTFT" if found.answered else "no token; until the end"
        text = f"{what} {found.whole_ns / 1e6:,.1f} ms = 100 %  "
        end = canvas.text(1, 1, text, palette.ink(bold=True))
        self._draw_bar_of(canvas, palette, found, end, width - 1)
        self._draw_gaps(canvas, palette, detail.gaps_ms, width)

    @staticmethod
    def _draw_bar_of(
        canvas: Canvas, palette: Palette, found: Breakdown, start: int, end: int
    ) -> None:
        room = max(1, end - start)
        amounts = np.array([part.ns for part in found.parts], np.float64)
        if not len(amounts):
            return
        ends = np.rint(np.cumsum(amounts) / amounts.sum() * room).astype(int).tolist()
        x = start
        for part, until in zip(found.parts, ends, strict=True):
            glyph = part.glyph if palette.shapes else "█"
            cells = start + until - x
            canvas.fill(x, 1, cells, 1, glyph, palette.ink(part.colour))
            text = f" {part.percent:.0f}% "
            if cells >= len(text) + 2 and not palette.shapes:
                canvas.text(x, 1, text, palette.ink("background", part.colour, bold=True))
            x += cells

    @staticmethod
    def _draw_gaps(canvas: Canvas, palette: Palette, gaps: Float64, width: int) -> None:
        if not len(gaps):
            return
        median, high = np.percentile(gaps, [50, 99])
        figures = f"p50 {median:,.1f}  p99 {high:,.1f}  max {gaps.max():,.1f} ms"
        x = canvas.text(1, 2, "ITL ", palette.ink("data-axis"))
        room = width - x - len(figures) - 3
        if room >= 8:
            starts = np.unique(np.linspace(0, len(gaps) - 1, min(room, len(gaps))).astype(int))
            peaks = np.maximum.reduceat(gaps, starts)
            sparkline(
                canvas, x, 2, eighths(peaks, float(gaps.max()), 1), palette.ink("data-decode")
            )
            x += len(peaks)
        canvas.text(x + 2, 2, figures, palette.ink("data-axis"), width)

    def draw_row(self, canvas: Canvas, palette: Palette, row: int, y: int, width: int) -> None:
        part = self._lines[row]
        here = row == self.cursor and self.has_focus
        ink = palette.ink(reverse=True) if here else palette.ink()
        if here:
            canvas.fill(0, y, width, 1, " ", ink)
        leads = "▸" if part.step >= 0 else " "
        canvas.text(0, y, leads, ink if here else palette.ink("data-step"))
        swatch = part.glyph if palette.shapes else "■"
        canvas.text(1, y, swatch, palette.ink(part.colour, reverse=here))
        cells = _LABEL_CELLS if width >= 100 else _SHORT_LABEL_CELLS
        canvas.text(3, y, shortened(part.label, cells), ink)
        canvas.right(3 + cells + 12, y, f"{part.ns / 1e6:,.1f} ms", ink)
        canvas.right(3 + cells + 20, y, f"{part.percent:.1f} %", ink)
        x = 3 + cells + 22
        blame_ink = ink if here else palette.ink("data-other")
        canvas.text(x, y, shortened(part.blame, width - x), blame_ink)
