"""The list of requests, each with a line of its life on logarithmic time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from textual.message import Message

from workbench.tui.list_pane import ListPane
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.plots.short_text import shortened
from workbench.tui.requests.figures import STATES, state_codes
from workbench.tui.requests.gantt import LogTime, Phase, Phases
from workbench.tui.requests.order import Int64, Order
from workbench.tui.store import RunStore

_COLOURS: Final = {
    Phase.QUEUED: "data-queue",
    Phase.PREFILL: "data-prefill",
    Phase.DECODE: "data-decode",
    Phase.QUEUED_AGAIN: "data-preempt",
    Phase.RECOMPUTE: "data-transfer",
}
SHAPES: Final = {
    Phase.NOTHING: " ",
    Phase.QUEUED: "░",
    Phase.PREFILL: "▒",
    Phase.DECODE: "█",
    Phase.QUEUED_AGAIN: "v",
    Phase.RECOMPUTE: "x",
}
_WORDS: Final = {
    Phase.QUEUED: "queued",
    Phase.PREFILL: "prefill",
    Phase.DECODE: "decode",
    Phase.QUEUED_AGAIN: "retracted",
    Phase.RECOMPUTE: "recompute",
}
_WIDE: Final = 110


@dataclass(frozen=True, slots=True)
class _Column:
    """A column: the figure that it sorts by, its heading, its cells."""

    name: str
    heading: str
    cells: int


_ALWAYS: Final = (
    _Column("id", "id", 8), _Column("prompt", "prompt", 8), _Column("hit", "hit", 7),
    _Column("out", "out", 6),
)  # fmt: skip
_NARROW: Final = (*_ALWAYS, _Column("ttft", "TTFT", 9))
_BROAD: Final = (
    *_ALWAYS, _Column("queue", "queue", 9), _Column("ttft", "TTFT", 9), _Column("tpot", "TPOT", 8),
    _Column("e2e", "E2E", 10), _Column("state", "state", 9),
)  # fmt: skip


class RequestList(ListPane):
    """Any number of requests; only those in sight are looked at.

    Args:
        store: the run.
    """

    HEADER_ROWS = 2

    @dataclass
    class SortedBy(Message):
        """A heading was clicked."""

        name: str

    def __init__(self, store: RunStore) -> None:
        super().__init__(id="requests")
        self._store = store
        self._phases = Phases(store)
        self._longest: tuple[int, float] = (-1, 0.0)
        self.ids: Int64 = np.empty(0, np.int64)
        self.order = Order()
        self.filter_text = ""

    @property
    def count(self) -> int:
        return len(self.ids)

    @property
    def request_id(self) -> int | None:
        """The request under the cursor."""
        return int(self.ids[self.cursor]) if 0 <= self.cursor < len(self.ids) else None

    def show(self, ids: Int64, order: Order, filter_text: str, select: int | None = None) -> None:
        """List requests; the cursor stays on its request, or goes to `select`."""
        here = self.request_id if select is None else select
        self.ids, self.order, self.filter_text = ids, order, filter_text
        at = np.flatnonzero(ids == (-1 if here is None else here))
        row = int(at[0]) if len(at) else max(0, min(self.cursor, len(ids) - 1))
        self.select(row, centre=True)

    def columns(self, width: int) -> tuple[_Column, ...]:
        """The columns that there is room for."""
        return _BROAD if width >= _WIDE else _NARROW

    def header_clicked(self, x: int) -> None:
        start = 1
        for column in self.columns(self.size.width):
            if start <= x < start + column.cells:
                self.post_message(self.SortedBy(column.name))
                return
            start += column.cells

    def draw_header(self, canvas: Canvas, palette: Palette, width: int) -> None:
        total = int(self._store.requests.seen.sum())
        shown = f"{self.count:,}" if self.count == total else f"{self.count:,} of {total:,}"
        end = canvas.text(1, 0, "requests ", palette.ink(bold=True))
        end = canvas.text(end, 0, shown, palette.ink())
        if self.filter_text:
            end = canvas.text(end + 2, 0, self.filter_text, palette.ink("data-step", bold=True))
        self._draw_legend(canvas, palette, end + 3, width)
        start = 1
        for column in self.columns(width):
            here = column.name == self.order.name
            arrow = ("▾" if self.order.descending else "▴") if here else ""
            ink = palette.ink(bold=True) if here else palette.ink("data-axis")
            canvas.right(start + column.cells, 1, f"{arrow}{column.heading}", ink)
            start += column.cells
        axis, x = self._axis(start + 2, width)
        for cell, label in axis.ticks():
            canvas.text(x + cell, 1, label, palette.ink("data-axis"), width)

    @staticmethod
    def _draw_legend(canvas: Canvas, palette: Palette, least: int, width: int) -> None:
        length = sum(len(word) + 3 for word in _WORDS.values())
        x = max(least, width - length)
        for phase, word in _WORDS.items():
            if x + len(word) + 2 > width:
                return
            glyph = SHAPES[phase] if palette.shapes else "■"
            x = canvas.text(x, 0, glyph, palette.ink(_COLOURS[phase]), width)
            x = canvas.text(x, 0, f" {word} ", palette.ink("data-axis"), width)

    def draw_row(self, canvas: Canvas, palette: Palette, row: int, y: int, width: int) -> None:
        request_id, here = int(self.ids[row]), row == self.cursor
        ink = palette.ink()
        if here:
            ink = palette.ink(bold=True, reverse=True)
            if not self.has_focus:
                ink = palette.ink(bg="panel", bold=True)
        start = 1
        columns = self.columns(width)
        if here:
            canvas.fill(0, y, 1 + sum(column.cells for column in columns), 1, " ", ink)
            canvas.text(0, y, "▸", ink)
        values = self._values(request_id)
        for column in columns:
            text = shortened(values[column.name], column.cells - 1)
            canvas.right(start + column.cells, y, text, ink)
            start += column.cells
        self._draw_life(canvas, palette, request_id, y, start + 2, width)

    def _values(self, request_id: int) -> dict[str, str]:
        book = self._store.requests
        row = book.row(request_id)
        gaps = row["output_tokens"] - 1
        first, last = row["first_token_ns"], row["finish_ns"]
        each = (last - first) / gaps if gaps > 0 and min(first, last) >= 0 else -1.0
        code = int(state_codes(book, slice(request_id, request_id + 1))[0])
        return {
            "id": f"r{request_id}",
            "prompt": f"{row['prompt_tokens']:,}" if row["prompt_tokens"] >= 0 else "",
            "hit": f"{row['cached_tokens']:,}",
            "out": f"{row['output_tokens']:,}",
            "queue": _ms(row["admitted_ns"], row["arrival_ns"]),
            "ttft": _ms(first, row["arrival_ns"]),
            "tpot": f"{each / 1e6:,.2f}" if each >= 0 else "",
            "e2e": _ms(last, row["arrival_ns"]),
            "state": STATES[code] + ("*" if row["retractions"] else ""),
        }

    def _axis(self, x: int, width: int) -> tuple[LogTime, int]:
        """The axis of the lives, and where it begins."""
        book = self._store.requests
        if self._longest[0] != book.version:
            end, arrival = book.column("finish_ns"), book.column("arrival_ns")
            lives = np.where((end >= 0) & (arrival >= 0), end - arrival, 0)
            self._longest = (book.version, float(lives.max(initial=0)))
        return LogTime.up_to(self._longest[1], width - x), x

    def _draw_life(
        self, canvas: Canvas, palette: Palette, request_id: int, y: int, x: int, width: int
    ) -> None:
        axis, x = self._axis(x, width)
        now = self._store.end_ns
        if palette.shapes:
            for i, code in enumerate(self._phases.cells(request_id, axis, now).tolist()):
                phase = Phase(code)
                if phase:
                    canvas.text(x + i, y, SHAPES[phase], palette.ink(_COLOURS[phase]))
            return
        halves = LogTime(axis.most_ns, 2 * axis.cells)
        codes = self._phases.cells(request_id, halves, now).reshape(-1, 2).tolist()
        for i, (left, right) in enumerate(codes):
            first, second = _COLOURS.get(Phase(left)), _COLOURS.get(Phase(right))
            if first is None and second is None:
                continue
            if first == second:
                canvas.text(x + i, y, "█", palette.ink(first))
            elif first is None:
                canvas.text(x + i, y, "▐", palette.ink(second))
            else:
                canvas.text(x + i, y, "▌", palette.ink(first, second))


def _ms(end_ns: int, start_ns: int) -> str:
    return f"{(end_ns - start_ns) / 1e6:,.1f}" if min(end_ns, start_ns) >= 0 else ""
