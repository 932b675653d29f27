"""A pane of a moving chart: it draws only if what it depends on has changed.

A screen asks its panes to `sync` once per frame; a pane that shows the same as before costs a
comparison of two keys.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import ClassVar

from textual.message import Message

from workbench.tui.pane import Pane, palette_of
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.plots.short_text import wrapped


class RequestChosen(Message):
    """A request was chosen in a pane; None: none is any more."""

    def __init__(self, request_id: int | None) -> None:
        super().__init__()
        self.request_id = request_id


class StepChosen(Message):
    """The position of a step was chosen in a pane."""

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position


class ChartPane(Pane):
    """Base of all charts.

    Attributes:
        EVERY_S: the least time between two drawings; 0 draws at the rate of the screen.
    """

    EVERY_S: ClassVar[float] = 0.0
    DEFAULT_CSS = """
    ChartPane { width: 1fr; height: 1fr; background: $background; color: $foreground; }
    """
    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's own name
        super().__init__(id=id)
        self._key: Hashable = None
        self._synced_s = -1.0

    def key(self) -> Hashable:
        """What the picture depends on besides size and theme; equal keys mean equal pictures."""
        raise NotImplementedError

    def sync(self) -> None:
        """Draw if there is something new, and it is not too soon."""
        if not self.display:
            return
        key = (self.key(), self.size, palette_of(self.app), self.has_focus)
        now_s = time.monotonic()
        if key == self._key:
            return
        alike = isinstance(self._key, tuple) and self._key[1:] == key[1:]
        if alike and now_s - self._synced_s < self.EVERY_S:
            return
        self._key, self._synced_s = key, now_s
        super().sync()

    def title(
        self, canvas: Canvas, palette: Palette, name: str, about: str, limit: int | None = None
    ) -> int:
        """The heading in row 0; returns the x after it."""
        strong = palette.ink(bold=True, underline=self.has_focus)
        parts = [(name, strong), (f" {about}", palette.ink("data-axis"))]
        return canvas.line(0, 0, parts, limit)

    def empty(self, canvas: Canvas, palette: Palette, name: str, *lines: str) -> None:
        """Say where there is nothing to draw why, and what would fill the pane; lines wrap."""
        self.title(canvas, palette, name, "")
        pieces = [piece for line in lines for piece in wrapped(line, canvas.width - 3)]
        for y, piece in enumerate(pieces, 2):
            canvas.text(2, y, piece, palette.ink("data-axis"))
