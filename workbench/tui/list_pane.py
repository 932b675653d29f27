"""A list of any length in one widget: only the rows in sight are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from workbench.tui.pane import Pane
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette

_WHEEL_ROWS = 3


class ListPane(Pane, can_focus=True):
    """Rows with a cursor; a subclass says how many there are and draws one.

    Attributes:
        cursor: the row that is selected; -1 without rows.
        top: the first row in sight.
        HEADER_ROWS: lines above the list that stay.
    """

    HEADER_ROWS: ClassVar[int] = 0
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False, id="list.up", tooltip="Up"),
        Binding("down,j", "move(1)", "Down", show=False, id="list.down", tooltip="Down"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="list.page_up"),
        Binding("pagedown", "page(1)", "Page down", show=False, id="list.page_down"),
        Binding("home", "jump(0)", "First", show=False, id="list.first", tooltip="First row"),
        Binding("end", "jump(-1)", "Last", show=False, id="list.last", tooltip="Last row"),
    ]

    @dataclass
    class Moved(Message):
        """The cursor is on another row."""

        pane: ListPane
        row: int

        @property
        def control(self) -> ListPane:
            """The list."""
            return self.pane

    @dataclass
    class Chosen(Message):
        """A row was clicked twice."""

        pane: ListPane
        row: int

        @property
        def control(self) -> ListPane:
            """The list."""
            return self.pane

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - as in Textual
        super().__init__(id=id)
        self.cursor = -1
        self.top = 0

    @property
    def count(self) -> int:
        """How many rows there are."""
        raise NotImplementedError

    def draw_row(self, canvas: Canvas, palette: Palette, row: int, y: int, width: int) -> None:
        """Draw a row on line `y`, `width` cells of it."""
        raise NotImplementedError

    def draw_header(self, canvas: Canvas, palette: Palette, width: int) -> None:
        """Draw the lines above the list."""

    def selectable(self, row: int) -> bool:
        """Whether the cursor may stand on a row; headings say no."""
        del row
        return True

    @property
    def rows_in_sight(self) -> int:
        """How many rows the widget has room for."""
        return max(1, self.size.height - self.HEADER_ROWS)

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """Header, rows in sight, and a scroll bar if there are more."""
        rows = max(1, canvas.height - self.HEADER_ROWS)
        self.top = max(0, min(self.top, self.count - rows))
        scrolls = self.count > rows
        width = canvas.width - int(scrolls)
        self.draw_header(canvas, palette, width)
        for y in range(min(rows, self.count - self.top)):
            self.draw_row(canvas, palette, self.top + y, self.HEADER_ROWS + y, width)
        if scrolls:
            self._draw_bar(canvas, palette, rows)

    def _draw_bar(self, canvas: Canvas, palette: Palette, rows: int) -> None:
        length = max(1, rows * rows // self.count)
        most = max(1, self.count - rows)
        start = round((rows - length) * self.top / most)
        x = canvas.width - 1
        canvas.fill(x, self.HEADER_ROWS, 1, rows, "│", palette.ink("data-same"))
        ink = palette.ink("data-axis")
        canvas.fill(x, self.HEADER_ROWS + start, 1, length, "┃", ink)

    def select(self, row: int, *, centre: bool = False) -> None:
        """Put the cursor on a row, or the nearest that can have it, and bring it into sight."""
        row = self._nearest(row)
        moved, self.cursor = row != self.cursor, row
        rows = self.rows_in_sight
        if centre and not self.top <= row < self.top + rows:
            self.top = max(0, row - rows // 2)
        if row >= 0:
            first = row if row == 0 or self.selectable(row - 1) else row - 1  # with its heading
            self.top = max(min(self.top, first), row - rows + 1, 0)
        self.sync()
        if moved:
            self.post_message(self.Moved(self, row))

    def _nearest(self, row: int) -> int:
        row = max(0, min(row, self.count - 1)) if self.count else -1
        if row < 0 or self.selectable(row):
            return row
        ahead = (r for r in range(row, self.count) if self.selectable(r))
        behind = (r for r in range(row, -1, -1) if self.selectable(r))
        return next(ahead, next(behind, -1))

    def action_move(self, by: int) -> None:
        """Move the cursor over rows that can have it."""
        row = self.cursor + by
        while 0 <= row < self.count and not self.selectable(row):
            row += by
        if 0 <= row < self.count:
            self.select(row)
        else:
            self.top = 0 if by < 0 else self.top
            self.sync()

    def action_page(self, pages: int) -> None:
        """Move the cursor by what is in sight."""
        self.select(self.cursor + pages * max(1, self.rows_in_sight - 1))

    def action_jump(self, row: int) -> None:
        """Go to the first or (-1) the last row."""
        self.select(row if row >= 0 else self.count - 1)

    def on_click(self, event: events.Click) -> None:
        """Select what was clicked; a second click chooses it."""
        row = self.top + event.y - self.HEADER_ROWS
        if event.y < self.HEADER_ROWS:
            self.header_clicked(event.x)
            return
        if row < self.count and self.selectable(row):
            self.select(row)
            if event.chain >= 2:
                self.post_message(self.Chosen(self, row))

    def header_clicked(self, x: int) -> None:
        """A cell of the header was clicked."""

    def on_mouse_scroll_down(self) -> None:
        """Roll."""
        self._roll(_WHEEL_ROWS)

    def on_mouse_scroll_up(self) -> None:
        """Roll."""
        self._roll(-_WHEEL_ROWS)

    def _roll(self, by: int) -> None:
        self.top = max(0, min(self.top + by, self.count - self.rows_in_sight))
        self.sync()

    def on_resize(self) -> None:
        """Keep the cursor in sight."""
        if self.cursor >= 0:
            self.select(self.cursor)

    def watch_has_focus(self, has_focus: bool) -> None:
        """Show whether the cursor is the one that keys move."""
        super().watch_has_focus(has_focus)
        self.sync()
