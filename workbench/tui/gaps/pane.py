"""One workload: its lanes before and after, what they come to, and its first calls by cause."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final

import numpy as np

from workbench.profile.first_call import FirstCall
from workbench.profile.gap_story import GapStory, Steady
from workbench.profile.gap_text import lane_shares, steady_lines, verdict
from workbench.tui.chart_pane import ChartPane
from workbench.tui.plots import bars
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.plots.short_text import shortened, wrapped

_LANE_ROWS: Final = 2
_LEFT: Final = 7  # cells for the names of lanes
_SIDE_FROM: Final = 100  # cells from which on first calls stand beside the figures
_FIGURES: Final = 56  # cells of the figures
_WRAP_FROM: Final = 20  # cells of height from which on a verdict has as many lines as it needs
_LEAST_BAR: Final = 70  # cells from which on causes have bars
_NOTHING: Final = "nothing was measured in this folder yet"
_HOW: Final = (
    "",
    "On a machine with a GPU,",
    "",
    "    workbench profile gaps --before eager --after graph",
    "",
    ("measures decode steps and a diffusion transformer's denoising loop, cold, eager and as CUDA "
    "Graphs, and leaves profile/gaps.json, which this screen shows."),
)  # fmt: skip
COLOURS: Final = {"eager": "data-step", "graph": "data-prefill"}
SHAPES: Final = {"eager": "▒", "graph": "█"}


class StoryPane(ChartPane):
    """The story that is chosen.

    Args:
        stories: to choose from.
        trouble: why there are none, if something is wrong.

    Attributes:
        stories: all there are.
        chosen: which of them.
        first_calls: on a narrow screen, first calls in place of the figures.
    """

    def __init__(self, stories: Sequence[GapStory], trouble: str | None = None) -> None:
        super().__init__(id="story")
        self.stories = stories
        self._trouble = trouble
        self.chosen = 0
        self.first_calls = False

    def key(self) -> Hashable:
        """As `ChartPane.key`."""
        return self.chosen, self.first_calls

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        if not self.stories:
            why = _NOTHING if self._trouble is None else self._trouble
            self.empty(canvas, palette, "gaps", why, *_HOW)
            return
        story = self.stories[self.chosen]
        number = f"{self.chosen + 1}/{len(self.stories)}  "
        x = canvas.text(0, 0, number, palette.ink("data-axis"))
        canvas.text(x, 0, f"{story.what} on {story.gpu}", palette.ink(bold=True))
        good = story.gain > 1.1
        colour = "data-good" if good else "data-axis"
        sentence = [shortened(verdict(story), canvas.width)]
        if canvas.height >= _WRAP_FROM:
            sentence = wrapped(verdict(story), canvas.width)
        for y, line in enumerate(sentence, 1):
            canvas.text(0, y, line, palette.ink(colour))
        y = _lanes(canvas, palette, 2 + len(sentence), story)
        if canvas.width >= _SIDE_FROM:
            _figures(canvas, palette, y + 1, story)
            _first_calls(canvas, palette, _FIGURES, y + 1, story)
        elif self.first_calls:
            _first_calls(canvas, palette, 0, y + 1, story)
        else:
            _figures(canvas, palette, y + 1, story)


def _lanes(canvas: Canvas, palette: Palette, y: int, story: GapStory) -> int:
    """Both over the same time; returns the y after them."""
    length = max(story.eager.lane_us, story.graph.lane_us)
    width = canvas.width - _LEFT - 1
    for name, steady in (("eager", story.eager), ("graph", story.graph)):
        canvas.text(0, y, name, palette.ink(COLOURS[name], bold=True))
        canvas.text(0, y + 1, f"{steady.busy_share:.0%}", palette.ink("data-axis"))
        _lane(canvas, palette, y, steady, name, (length, width))
        y += _LANE_ROWS + 1
    canvas.text(_LEFT, y - 1, "0", palette.ink("data-axis"))
    ends = f"{length:,.0f} us, the time of three {story.unit}s; as high as the GPU is busy"
    canvas.right(canvas.width - 1, y - 1, shortened(ends, width - 2), palette.ink("data-axis"))
    return y


def _lane(
    canvas: Canvas, palette: Palette, y: int, steady: Steady, name: str, span: tuple[float, int]
) -> None:
    length, width = span
    if width < 1:
        return
    shares = np.array(lane_shares(steady, length, width))
    ends = int(np.count_nonzero(shares >= 0))
    canvas.fill(_LEFT, y, ends, _LANE_ROWS, " ", palette.ink(None, "data-free"))
    level = np.where(shares > 0, np.round(shares * 8 * _LANE_ROWS), 0).astype(np.int64)
    ground = palette.ink(COLOURS[name], "data-free")
    for row in range(min(_LANE_ROWS, canvas.height - y)):
        part = np.clip(level - 8 * (_LANE_ROWS - 1 - row), 0, 8)
        drawn = np.flatnonzero(part > 0)
        glyphs = bars.EIGHTHS[part[drawn]]
        if palette.shapes:
            glyphs = np.where(part[drawn] == 8, ord(SHAPES[name]), glyphs)
        canvas.glyphs[y + row, _LEFT + drawn] = glyphs
        canvas.inks[y + row, _LEFT + drawn] = ground


def _figures(canvas: Canvas, palette: Palette, y: int, story: GapStory) -> None:
    for number, line in enumerate(steady_lines(story)):
        ink = palette.ink("data-axis") if not number else palette.ink()
        canvas.text(0, y + number, line, ink)


def _first_calls(canvas: Canvas, palette: Palette, x: int, y: int, story: GapStory) -> None:
    for title, call in (("first call", story.cold), ("first call as a graph", story.capture)):
        head = f"{title}: {call.wall_ms:,.1f} ms"
        canvas.text(x, y, head, palette.ink("data-axis"))
        y = _causes(canvas, palette, x, y + 1, call) + 1


def _causes(canvas: Canvas, palette: Palette, x: int, y: int, call: FirstCall) -> int:
    """A line a cause that took anything; returns the y after them."""
    most = max((ms for _, ms, _ in call.causes), default=0.0) or 1.0
    for number, (cause, ms, _) in enumerate(call.causes):
        if ms < 0.05:
            continue
        end = canvas.text(x, y, f"{cause:<34}{ms:>9,.1f} ", palette.ink())
        room = canvas.width - end - 1
        if canvas.width - x >= _LEAST_BAR - 10 and room > 0:
            canvas.text(end, y, "█" * round(room * ms / most), palette.ink(f"hue-{number}"))
        y += 1
    return y
