"""A pane: one widget of Textual's line API that draws itself on a canvas.

A pane is asked to `sync` once per frame. It draws only if what it depends on has changed, and tells
Textual only of the rows that look different from before.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette

if TYPE_CHECKING:
    from textual.app import RenderResult


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


class ChartPane(Widget):
    """Base of all panes.

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
        self._canvas: Canvas | None = None
        self._palette: Palette | None = None
        self._key: Hashable = None
        self._strips: list[Strip | None] = []
        self._drawn_s = -1.0

    def key(self) -> Hashable:
        """What the picture depends on besides the size; equal keys mean equal pictures."""
        raise NotImplementedError

    def picture(self, canvas: Canvas, palette: Palette) -> None:
        """Draw everything on an empty canvas of the pane's size."""
        raise NotImplementedError

    def sync(self, palette: Palette, now_s: float) -> bool:
        """Draw if there is something new; whether anything looks different now.

        Args:
            palette: of the screen.
            now_s: a clock, for panes that are not drawn in every frame.
        """
        width, height = self.size
        if not (width and height and self.display):
            return False
        key = (self.key(), width, height, id(palette))
        if key == self._key:
            return False
        if self._same_size(width, height) and now_s - self._drawn_s < self.EVERY_S:
            return False
        canvas = Canvas(width, height)
        self.picture(canvas, palette)
        rows = canvas.changed_rows(self._canvas if palette is self._palette else None)
        self._key, self._canvas, self._palette, self._drawn_s = key, canvas, palette, now_s
        if len(self._strips) != height:
            self._strips = [None] * height
        changed = np.flatnonzero(rows).tolist()
        for y in changed:
            self._strips[y] = None
        if changed:
            self.refresh(*_regions(changed, width))
        return bool(changed)

    def render(self) -> RenderResult:
        """Nothing: `render_line` draws."""
        return ""

    def render_line(self, y: int) -> Strip:
        """A row of the last picture."""
        canvas, palette = self._canvas, self._palette
        if canvas is None or palette is None or y >= canvas.height:
            return Strip.blank(self.size.width, self.rich_style)
        strip = self._strips[y]
        if strip is None:
            strip = self._strips[y] = canvas.strip(y, palette)
        return strip

    def title(
        self, canvas: Canvas, palette: Palette, name: str, about: str, limit: int | None = None
    ) -> int:
        """The heading in row 0; returns the x after it."""
        parts = [(name, palette.ink(bold=True)), (f" {about}", palette.ink("data-axis"))]
        return canvas.line(0, 0, parts, limit)

    def empty(self, canvas: Canvas, palette: Palette, name: str, *lines: str) -> None:
        """What to say where there is nothing to draw: why, and what would fill the pane."""
        self.title(canvas, palette, name, "")
        for y, line in enumerate(lines, 2):
            canvas.text(2, y, line, palette.ink("data-axis"))

    def on_resize(self, event: events.Resize) -> None:
        """Draw anew in the next frame."""
        del event
        self._key = None

    def _same_size(self, width: int, height: int) -> bool:
        canvas = self._canvas
        return canvas is not None and (canvas.width, canvas.height) == (width, height)


def _regions(rows: list[int], width: int) -> list[Region]:
    """Rows as few regions as possible."""
    regions: list[Region] = []
    for y in rows:
        if regions and regions[-1].bottom == y:
            regions[-1] = Region(0, regions[-1].y, width, regions[-1].height + 1)
        else:
            regions.append(Region(0, y, width, 1))
    return regions
