"""The form: one line for each key of a scenario, edited in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message

from workbench.tui.lines_pane import LinesPane
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.plots.short_text import shortened

if TYPE_CHECKING:
    from workbench.tui.scenarios.form_rows import FormRow

_LABEL_CELLS = 27
_LEAST_LABEL_CELLS = 17


class FormPane(LinesPane["FormRow | str"]):
    """Rows under the heading of their section; left and right change what has few values."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "edit", "Edit", id="form.edit", tooltip="Change the value of this line"),
        Binding("right,l", "turn(1)", "Next value", show=False, id="form.next_value",
                tooltip="Next of the values that this line may have"),
        Binding("left,h", "turn(-1)", "Value before", show=False, id="form.value_before",
                tooltip="Value before of those that this line may have"),
        Binding("backspace,delete", "reset", "As the file", show=False, id="form.reset",
                tooltip="This line as the file has it"),
    ]  # fmt: skip

    @dataclass
    class Edit(Message):
        """The value of a row is to be typed."""

        row: FormRow

    @dataclass
    class Set(Message):
        """A row gets a value; None: as the file has it."""

        row: FormRow
        value: str | None

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - as in Textual
        super().__init__(id=id)
        self.wrong: frozenset[str] = frozenset()
        self.stale = False

    @property
    def row(self) -> FormRow | None:
        """The row under the cursor."""
        return self.line if not isinstance(self.line, str) else None

    def show(self, rows: list[FormRow], wrong: frozenset[str] = frozenset()) -> None:
        """Show rows; `wrong` are the keys that errors point at."""
        here = self.row
        lines: list[FormRow | str] = []
        section = None
        for row in rows:
            if row.section != section:
                section = row.section
                lines.append(section)
            lines.append(row)
        self._lines = lines
        self.wrong, self.stale = wrong, False
        keys = [line.key if not isinstance(line, str) else "" for line in self._lines]
        wanted = keys.index(here.key) if here is not None and here.key in keys else self.cursor
        self.select(max(wanted, 0))

    def selectable(self, row: int) -> bool:
        return not isinstance(self._lines[row], str)

    def action_edit(self) -> None:
        """Ask for a value."""
        if self.row is not None:
            self.post_message(self.Edit(self.row))

    def action_turn(self, by: int) -> None:
        """Take the next of few values."""
        row = self.row
        if row is None or not row.options:
            return
        at = (
            row.options.index(row.value) + by if row.value in row.options else (0 if by > 0 else -1)
        )
        self.post_message(self.Set(row, row.options[at % len(row.options)]))

    def action_reset(self) -> None:
        """Take the value of the file."""
        if self.row is not None:
            self.post_message(self.Set(self.row, None))

    def draw_row(self, canvas: Canvas, palette: Palette, row: int, y: int, width: int) -> None:
        line = self._lines[row]
        if isinstance(line, str):
            end = canvas.text(1, y, f"{line} ", palette.ink("data-axis", bold=True), width)
            canvas.fill(end, y, width - end, 1, "─", palette.ink("data-same"))
            return
        here = row == self.cursor
        focused = here and self.has_focus
        base = palette.ink(reverse=True) if focused else palette.ink()
        if here and not focused:
            base = palette.ink(bg="panel")
        if here:
            canvas.fill(0, y, width, 1, " ", base)
        label = min(_LABEL_CELLS, max(_LEAST_LABEL_CELLS, width * 2 // 5))
        label_ink = base if here else palette.ink("data-other")
        wrong, changed = line.key in self.wrong, line.changed
        canvas.text(0, y, "✗" if wrong else "●" if changed else " ", self._mark_ink(palette, wrong))
        canvas.text(2, y, shortened(line.label, label - 1), label_ink)
        value_ink = base
        if not here:
            value_ink = palette.ink(
                "data-bad" if wrong else "data-step" if changed else "foreground"
            )
        text = line.shown or "–"
        if not line.value and not here:
            value_ink = palette.ink("data-same")
        if line.options and here:
            text = f"‹ {text} ›"
        canvas.text(2 + label, y, shortened(text, width - 2 - label), value_ink, width)

    @staticmethod
    def _mark_ink(palette: Palette, wrong: bool) -> int:
        return palette.ink("data-bad" if wrong else "data-step", bold=True)
