"""The line at the top of a screen: where you are, where else you can go, what is open."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.strip import Strip
from textual.widget import Widget

from workbench.tui.plots.short_text import whole_parts

if TYPE_CHECKING:
    from textual.app import RenderResult

MODES: Final[dict[str, str]] = {
    "scenarios": "Scenarios",
    "live": "Live",
    "compare": "Compare",
    "requests": "Requests",
    "why": "Why",
    "roofline": "Roofline",
    "gaps": "Gaps",
}
_SHORT: Final = {"Scenarios": "Scen", "Compare": "Cmp", "Requests": "Req", "Roofline": "Roof"}
_NAME: Final = " workbench "
_ROOM_FOR_WORDS: Final = 90  # cells from which on the tabs are spelled out


class ModeTabs(Widget):
    """One line; a click on a mode goes there.

    Args:
        mode: the one that is shown.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "mode-tabs--here", "mode-tabs--key", "mode-tabs--dim", "mode-tabs--name",
    }  # fmt: skip
    DEFAULT_CSS = """
    ModeTabs { height: 1; width: 1fr; background: $panel; color: $foreground; }
    ModeTabs .mode-tabs--here { text-style: bold reverse; }
    ModeTabs .mode-tabs--key { color: $data-step; text-style: bold; }
    ModeTabs .mode-tabs--dim { color: $foreground 60%; }
    ModeTabs .mode-tabs--name { text-style: bold; }
    """

    def __init__(self, mode: str) -> None:
        super().__init__()
        self._mode = mode
        self._note = ""
        self._places: list[tuple[int, int, str]] = []

    def note(self, text: str) -> None:
        """Say something at the right end of the line.

        Of parts with two blanks in between the last go first where there is no room for all.
        """
        if text != self._note:
            self._note = text
            self.refresh()

    def render(self) -> RenderResult:
        """Nothing: `render_line` draws."""
        return ""

    def render_line(self, y: int) -> Strip:
        """The line."""
        del y
        base = self.rich_style
        styles = {
            part: base + self.get_component_rich_style(f"mode-tabs--{part}", partial=True)
            for part in ("here", "key", "dim", "name")
        }
        width = self.size.width
        segments = [Segment(_NAME, styles["name"])]
        x, self._places = len(_NAME), []
        for number, (mode, title) in enumerate(MODES.items(), 1):
            word = title if width >= _ROOM_FOR_WORDS else _SHORT.get(title, title)
            parts = self._tab(number, word, mode == self._mode, styles)
            length = sum(len(part.text) for part in parts)
            self._places.append((x, x + length, mode))
            segments += parts
            x += length
        note = whole_parts(self._note, max(0, width - x - 2))
        segments.append(Segment(" " * max(0, width - x - len(note) - 1), base))
        segments.append(Segment(f"{note} ", styles["dim"]))
        return Strip(segments).crop(0, width)

    @staticmethod
    def _tab(number: int, word: str, here: bool, styles: dict[str, Style]) -> list[Segment]:
        if here:
            return [Segment(f" {number} {word} ", styles["here"])]
        return [Segment(f" {number}", styles["key"]), Segment(f" {word} ", styles["dim"])]

    async def on_click(self, event: events.Click) -> None:
        """Go to the mode that was clicked."""
        for start, end, mode in self._places:
            if start <= event.x < end:
                await self.app.run_action(f"mode('{mode}')")
