"""A widget that draws itself on a canvas, and sends to the terminal only the lines that changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from textual.app import App
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette

if TYPE_CHECKING:
    from textual.app import RenderResult


def palette_of(app: App[object]) -> Palette:
    """The palette of the application's present theme, made once for each theme."""
    plain = bool(getattr(app, "plain", False))
    key = (app.theme, plain)
    cached: tuple[tuple[str, bool], Palette] | None = getattr(app, "_palette", None)
    if cached is None or cached[0] != key:
        palette = Palette(app.theme_variables, app.current_theme.dark, plain)
        cached = (key, palette)
        app._palette = cached  # type: ignore[attr-defined]  # noqa: SLF001 - ours, on theirs
    return cached[1]


class Pane(Widget):
    """One widget of the line API; a subclass says in `draw` what is on it.

    `sync` draws anew and is cheap where nothing changed; call it whenever the data may have.
    """

    _canvas: Canvas | None = None
    _drawn_with: Palette | None = None

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """Draw everything on an empty canvas of the widget's size."""
        raise NotImplementedError

    def sync(self) -> None:
        """Draw, and have the lines that differ from what was drawn before painted."""
        width, height = self.size
        if width < 1 or height < 1:
            return
        before, palette = self._canvas, palette_of(self.app)
        canvas = Canvas(width, height)
        self.draw(canvas, palette)
        if palette is not self._drawn_with:
            before = None
        self._canvas, self._drawn_with = canvas, palette
        changed = np.flatnonzero(canvas.changed_rows(before))
        if len(changed):
            self.refresh(*_regions(changed.tolist(), width))

    def render(self) -> RenderResult:
        """Nothing: `render_line` draws."""
        return ""

    def render_line(self, y: int) -> Strip:
        """A line of the canvas, drawn first if the size or the theme has changed."""
        width, height = self.size
        canvas, palette = self._canvas, palette_of(self.app)
        stale = canvas is None or (canvas.width, canvas.height) != (width, height)
        if stale or palette is not self._drawn_with:
            canvas = Canvas(width, height)
            self.draw(canvas, palette)
            self._canvas, self._drawn_with = canvas, palette
        assert canvas is not None  # noqa: S101 - made above
        if y >= canvas.height:
            return Strip.blank(width, self.rich_style)
        return canvas.strip(y, palette)


def _regions(rows: list[int], width: int) -> list[Region]:
    """Rows, ascending, as few regions as possible."""
    regions: list[Region] = []
    for y in rows:
        if regions and regions[-1].bottom == y:
            regions[-1] = Region(0, regions[-1].y, width, regions[-1].height + 1)
        else:
            regions.append(Region(0, y, width, 1))
    return regions
