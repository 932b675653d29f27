"""The list of scenarios and runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message

from workbench.tui.lines_pane import LinesPane
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.plots.short_text import shortened
from workbench.tui.scenarios.catalogue import GROUPS, Entry

_ROOM_FOR_NOTES = 60  # cells from which on a line says what the entry is about
_NAME_CELLS = 26


@dataclass(frozen=True, slots=True)
class _Heading:
    text: str


class CataloguePane(LinesPane[Entry | _Heading]):
    """Entries under the heading of their group; `filter` keeps those whose words hold a text."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,l", "go_inside", "Into it", show=False, id="catalogue.inside",
                tooltip="Into the form, the YAML or the metrics; escape comes back"),
    ]  # fmt: skip

    class Inside(Message):
        """The entry under the cursor is to be looked into."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - as in Textual
        super().__init__(id=id)
        self._entries: list[Entry] = []
        self._filter = ""
        self.marked: str | None = None

    @property
    def entry(self) -> Entry | None:
        """The entry under the cursor."""
        return self.at(self.cursor)

    def at(self, row: int) -> Entry | None:
        """The entry of a row; None for a heading, or outside."""
        line = self.line_at(row)
        return line if isinstance(line, Entry) else None

    def show(self, entries: list[Entry], selected: str | None = None) -> None:
        """List entries; the cursor goes to the one called `selected`, or stays on what it is on."""
        here = self.entry.name if self.entry is not None else None
        self._entries = entries
        self._arrange(selected or here)

    def set_filter(self, text: str) -> None:
        """Keep only entries with this text in them."""
        here = self.entry.name if self.entry is not None else None
        self._filter = text.lower()
        self._arrange(here)

    def action_go_inside(self) -> None:
        """Look into the entry under the cursor."""
        self.post_message(self.Inside())

    def selectable(self, row: int) -> bool:
        return isinstance(self._lines[row], Entry)

    def _arrange(self, selected: str | None) -> None:
        lines: list[Entry | _Heading] = []
        for kind, title in GROUPS.items():
            kept = [e for e in self._entries if e.kind == kind and self._matches(e)]
            if kept:
                lines += [_Heading(f"{title}  {len(kept)}"), *kept]
        self._lines = lines
        names = [line.name if isinstance(line, Entry) else "" for line in self._lines]
        # What the cursor was on may have gone: whatever it is on then is told of.
        before, self.cursor = self.cursor, names.index(selected) if selected in names else -1
        self.select(self.cursor if self.cursor >= 0 else max(before, 0), centre=True)

    def _matches(self, entry: Entry) -> bool:
        text = f"{entry.name} {entry.title} {entry.note}".lower()
        return all(word in text for word in self._filter.split())

    def draw_row(self, canvas: Canvas, palette: Palette, row: int, y: int, width: int) -> None:
        line = self._lines[row]
        if isinstance(line, _Heading):
            canvas.text(1, y, line.text, palette.ink("data-axis", bold=True), width)
            return
        here = row == self.cursor
        ink = _row_ink(palette, here, self.has_focus)
        if here:
            canvas.fill(0, y, width, 1, " ", ink)
            canvas.text(0, y, "▸", ink)
        name_end = min(width, 2 + _NAME_CELLS) if width >= _ROOM_FOR_NOTES else width
        outcome = _outcome(line)
        room = name_end - len(outcome) - 2 if width < _ROOM_FOR_NOTES else name_end
        mark = "A " if self.marked == line.name else ""
        canvas.text(2, y, shortened(mark + line.title, room - 2), ink)
        if outcome:
            outcome_ink = ink if here else palette.ink(_colour(line))
            end = width - 1 if width < _ROOM_FOR_NOTES else name_end + 18
            canvas.right(end, y, outcome, outcome_ink)
        if width >= _ROOM_FOR_NOTES:
            start = name_end + (20 if outcome else 1)
            note_ink = ink if here else palette.ink("data-other")
            canvas.text(start, y, line.note, note_ink, width)


def _outcome(entry: Entry) -> str:
    """How a recorded run went, and how long ago; of a scenario that it is a changed one, or ""."""
    if entry.stands_for:
        return "not as shipped"
    if entry.unreadable:
        return "unreadable"
    return f"{entry.run.outcome} {entry.run.age():>3}" if entry.run is not None else ""


def _row_ink(palette: Palette, here: bool, focused: bool) -> int:
    if not here:
        return palette.ink()
    if focused:
        return palette.ink(bold=True, reverse=True)
    return palette.ink(bg="panel", bold=True)


def _colour(entry: Entry) -> str:
    if entry.run is not None:
        return _outcome_colour(entry.run.outcome)
    return "data-bad" if entry.unreadable else "data-warning"


def _outcome_colour(outcome: str) -> str:
    if outcome in ("failed", "running"):
        return "data-bad"
    if outcome == "interrupted":
        return "data-warning"
    if outcome.endswith("slo"):
        attained = float(outcome.partition("%")[0])
        return "data-good" if attained >= 99 else "data-warning" if attained >= 90 else "data-bad"
    return "data-other"
