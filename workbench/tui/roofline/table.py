"""The classes of the step under the cursor as a table, and what would move them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Final

from workbench.profile.ceilings import COMPUTE, LATENCY, LINK, MEMORY
from workbench.profile.roofline import Point, Roofline
from workbench.profile.run_roofline import WhatIf
from workbench.tui.chart_pane import ChartPane
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.plots.short_text import wrapped
from workbench.tui.roofline.colours import COLOUR_OF
from workbench.tui.roofline.state import LETTERS, RooflineState

_BOUND: Final = {MEMORY: ("mem", "data-decode"), COMPUTE: ("cmp", "data-step"),
                 LATENCY: ("lat", "data-bad"), LINK: ("lnk", "data-transfer")}  # fmt: skip
_LEAST_TABLE: Final = 6  # lines; with fewer beside sentences there is none
_BAR_FROM: Final = 48  # cells
_ABOVE: Final = "faster than that: eff can be above 100%"
_CHANGED: Final = 0.02  # a time less far from another is the same


class TablePane(ChartPane):
    """Share of the step, rate, and bound of each class; below what if."""

    def __init__(self, state: RooflineState) -> None:
        super().__init__(id="classes")
        self._state = state

    def key(self) -> Hashable:
        """As `ChartPane.key`."""
        return self._state.key(), self._state.player.head >= 0

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        found = self._state.now()
        if found is None:
            if self._state.detail or self.screen.has_class("-narrow"):  # there is no plot to say it
                self.empty(canvas, palette, "roofline", *self._state.why_not())
            return
        below = [
            (line, colour)
            for text, colour in self._below(found)
            for line in wrapped(text, canvas.width, "  ")
        ]
        first = 0
        if not self._state.detail or len(below) + _LEAST_TABLE <= canvas.height:
            first = self._table(canvas, palette, found, canvas.height - len(below) - 3) + 1
        for y, (text, colour) in enumerate(below, first):
            canvas.text(0, y, text, palette.ink(colour))

    def _table(self, canvas: Canvas, palette: Palette, found: Roofline, room: int) -> int:
        """At most so many classes and what is left of the step; returns the y after them."""
        dim = palette.ink("data-axis")
        canvas.text(0, 0, f"{'  class':<20}{'% step':>7}{'TB/s':>6}{'eff':>5}  bound", dim)
        room = max(room, 2)
        fits = len(found.points) <= room
        shown = found.points if fits else found.points[: room - 1]
        for y, (letter, point) in enumerate(zip(LETTERS, shown, strict=False), 1):
            _row(canvas, palette, y, letter, point, found)
        y = len(shown) + 1
        for name, us in _left_out(found, len(shown)):
            share = us / found.step_us if found.step_us else 0.0
            canvas.text(0, y, f"{'  ' + name:<20}{100 * share:>7.1f}", dim)
            y += 1
        return y

    def _below(self, found: Roofline) -> list[tuple[str, str | None]]:
        """Lines of (text, colour)."""
        state = self._state
        if state.detail:
            return [(point.words, COLOUR_OF[point.group]) for point in found.points]
        predicted = state.predicted_us()
        off = found.step_us / predicted - 1 if predicted else 0.0
        kind = "measured" if state.store.header.kind == "engine" else "simulated"
        lines: list[tuple[str, str | None]] = [
            (f"step {kind} {found.step_us / 1e3:,.3f} ms, by the analytic model", None),
            (f"{predicted / 1e3:,.3f} ms ({off:+.0%}); its shares divide the step", None),
            *([(_ABOVE, "data-axis")] if round(off, 2) < 0 else []),
        ]
        what_ifs = state.what_ifs()
        if what_ifs:
            lines += [("", None), (f"{'what if':<24}{'step':>7}{'tok/s':>8}", "data-axis")]
        return lines + [_what_if(one) for one in what_ifs]


def _left_out(found: Roofline, shown: int) -> Iterator[tuple[str, float]]:
    """(what has no row of its own, its time)."""
    more = found.points[shown:]
    if more:
        yield f"{len(more)} more", sum(point.time_us for point in more)
    yield "launches, gaps", found.rest_us


def _row(
    canvas: Canvas, palette: Palette, y: int, letter: str, point: Point, found: Roofline
) -> None:
    colour, share = COLOUR_OF[point.group], point.time_us / found.step_us if found.step_us else 0.0
    bound, bound_colour = _BOUND[point.bound]
    x = canvas.line(0, y, [
        (letter, palette.ink("background", colour, bold=True)),
        (f" {point.kind:<18}", palette.ink()),
        (f"{100 * share:>7.1f}", palette.ink()),
        (f"{point.tb_s:>6.2f}", palette.ink()),
        (_efficiency(point), palette.ink()),
        (f"  {bound} ", palette.ink(bound_colour, bold=True)),
    ])  # fmt: skip
    room = canvas.width - x - 1
    if canvas.width >= _BAR_FROM and room > 0:
        canvas.text(x, y, "█" * round(share * room), palette.ink(colour))


def _efficiency(point: Point) -> str:
    return f"{'-':>5}" if point.bound == LINK else f"{min(point.fraction, 9.99):>5.0%}"


def _what_if(one: WhatIf) -> tuple[str, str | None]:
    """A sentence, green where tokens get faster by more than the step gets slower."""
    text = f"{one.name:<24}{one.step - 1:>+7.0%}{one.tokens_per_s - 1:>+8.0%}"
    if one.crossed:
        text += f"  over the ridge: {', '.join(one.crossed)}"
    better = one.tokens_per_s > 1 + _CHANGED
    return text, "data-good" if better else "data-axis"
