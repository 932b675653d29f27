"""Lines of text to read, some of which lead somewhere."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message

from workbench.tui.goto_target import Target
from workbench.tui.lines_pane import LinesPane
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line.

    Attributes:
        text: of it.
        colour: name of its colour; None: plain.
        bold: whether it stands out.
        target: where it leads, if anywhere.
    """

    text: str
    colour: str | None = None
    bold: bool = False
    target: Target | None = None


class TextPane(LinesPane[TextLine]):
    """Lines with a cursor on those that lead somewhere; Enter goes there."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "follow", "Go there", id="text.follow",
                tooltip="Go to the step or the request of this line"),
    ]  # fmt: skip

    @dataclass
    class Followed(Message):
        """A line that leads somewhere was chosen."""

        target: Target

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - as in Textual
        super().__init__(id=id)
        self._source: Sequence[TextLine] = ()
        self._width = 0

    def show(self, lines: Sequence[TextLine]) -> None:
        """Show other lines, from the top."""
        self._source, self.top = lines, 0
        self._wrap()
        self.cursor = next((i for i, line in enumerate(self._lines) if line.target), -1)
        self.sync()

    def on_resize(self) -> None:
        """Wrap the lines anew."""
        if self._width != self.size.width:
            self._wrap()
            self.cursor = min(self.cursor, len(self._lines) - 1)
        self.sync()

    def _wrap(self) -> None:
        self._width = self.size.width
        room = max(20, self._width - 2)
        self._lines = [piece for line in self._source for piece in _wrapped(line, room)]

    def selectable(self, row: int) -> bool:
        return self._lines[row].target is not None

    def action_move(self, by: int) -> None:
        """Go to the next line that leads somewhere, if one is in sight; else roll."""
        row = self.cursor + by
        while 0 <= row < self.count and not self.selectable(row):
            row += by
        if 0 <= row < self.count and self.top <= row < self.top + self.rows_in_sight:
            self.select(row)
        else:
            self._roll(by)

    def action_page(self, pages: int) -> None:
        """Roll by what is in sight."""
        self._roll(pages * max(1, self.rows_in_sight - 1))

    def action_jump(self, row: int) -> None:
        """Roll to the first or the last line."""
        self.top = 0 if row == 0 else max(0, self.count - self.rows_in_sight)
        self.sync()

    def action_follow(self) -> None:
        """Go where the line leads."""
        if self.line is not None and self.line.target is not None:
            self.post_message(self.Followed(self.line.target))

    def draw_row(self, canvas: Canvas, palette: Palette, row: int, y: int, width: int) -> None:
        line = self._lines[row]
        here = row == self.cursor and self.has_focus and line.target is not None
        ink = palette.ink(line.colour, bold=line.bold)
        if here:
            ink = palette.ink(reverse=True)
            canvas.fill(0, y, width, 1, " ", ink)
        canvas.text(1, y, line.text, ink, width)
        if line.target is not None and not here:
            canvas.text(0, y, "▸", palette.ink("data-step"))


def _wrapped(line: TextLine, room: int) -> list[TextLine]:
    """A line in pieces that fit; later pieces stand further in, and lead nowhere."""
    if len(line.text) <= room:
        return [line]
    indent = " " * (len(line.text) - len(line.text.lstrip()) + 2)
    pieces = textwrap.wrap(
        line.text, room, subsequent_indent=indent, drop_whitespace=False, break_long_words=True
    )
    first, *rest = (piece.rstrip() for piece in pieces)
    more = (replace(line, text=indent + piece.lstrip(), target=None) for piece in rest)
    return [replace(line, text=first), *more]
