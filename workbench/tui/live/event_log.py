"""The event log: what happened last, each line a link to its step and its request."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar, Final

from textual import events
from textual.binding import Binding, BindingType

from workbench.tui.chart_pane import ChartPane, RequestChosen, StepChosen
from workbench.tui.live.state import LiveState
from workbench.tui.plots.canvas import Canvas
from workbench.tui.plots.palette import Palette
from workbench.tui.plots.short_text import wrapped
from workbench.tui.store.happenings import FILTERS, Happening, last_happenings

_COLOURS: Final = {
    "hit": "data-hit",
    "evict": "data-step",
    "retract": "data-preempt",
    "reject": "data-bad",
    "blocked": "data-queue",
    "mark": "data-selected",
    "arrive": "data-prefill",
    "admit": "data-prefill",
    "resume": "data-prefill",
    "finish": "data-decode",
}


class EventPane(ChartPane, can_focus=True):
    """The newest line at the bottom; up and down choose one, enter goes there."""

    EVERY_S: ClassVar[float] = 0.1
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Earlier event", id="live.event_up", show=False),
        Binding("down", "move(1)", "Later event", id="live.event_down", show=False),
        Binding("enter", "go", "Go to event", id="live.event_go", show=False,
                tooltip="Go to the step of the chosen event, and light up its request"),
    ]  # fmt: skip

    def __init__(self, state: LiveState) -> None:
        super().__init__(id="events")
        self._state = state
        self._shown: list[Happening] = []
        self._chosen: int | None = None

    @property
    def chosen(self) -> Happening | None:
        """The event that the cursor is on."""
        if self._chosen is None or not self._shown:
            return None
        return self._shown[min(self._chosen, len(self._shown) - 1)]

    def key(self) -> Hashable:
        """As `ChartPane.key`."""
        state = self._state
        return state.key(), state.filter, self._chosen, self.has_focus, len(state.store.marks)

    def draw(self, canvas: Canvas, palette: Palette) -> None:
        """As `Pane.draw`."""
        state = self._state
        player = state.player
        about = f"{state.filter}  f other"
        self.title(canvas, palette, "events", about)
        if self.has_focus:
            canvas.right(canvas.width - 1, 0, "↵ go", palette.ink("data-axis"))
        if player.empty:
            return
        kinds = FILTERS[state.filter]
        self._shown = last_happenings(
            state.store, player.log, player.position, canvas.height - 1, kinds
        )
        if not self._shown:
            text = f"none so far of: {', '.join(sorted(kinds))}"
            for y, line in enumerate(wrapped(text, canvas.width - 2), 2):
                canvas.text(1, y, line, palette.ink("data-axis"))
            return
        for y, happening in enumerate(self._shown, 1):
            self._line(canvas, palette, y, happening)

    def _line(self, canvas: Canvas, palette: Palette, y: int, happening: Happening) -> None:
        chosen = self.has_focus and happening is self.chosen
        mine = happening.request_id is not None and (
            happening.request_id == self._state.player.selected_request
        )
        text = palette.ink("data-selected" if mine else None, bold=mine, reverse=chosen)
        colour = _COLOURS[happening.kind]
        canvas.right(8, y, f"{happening.position:,}", palette.ink("data-axis", reverse=chosen))
        canvas.text(9, y, f"{happening.kind:<8}", palette.ink(colour, bold=True, reverse=chosen))
        canvas.text(17, y, happening.text, text)

    def action_move(self, by: int) -> None:
        """Move the cursor of the list."""
        if self._shown:
            here = len(self._shown) - 1 if self._chosen is None else self._chosen + by
            self._chosen = min(max(here, 0), len(self._shown) - 1)

    def action_go(self) -> None:
        """Go to the step of the chosen event."""
        if self.chosen is not None:
            self._open(self.chosen)

    def on_click(self, event: events.Click) -> None:
        """Go to the step of the event that was clicked."""
        at = event.y - 1
        if 0 <= at < len(self._shown):
            self._chosen = at
            self._open(self._shown[at])

    def _open(self, happening: Happening) -> None:
        if happening.request_id is not None:
            self.post_message(RequestChosen(happening.request_id))
        self.post_message(StepChosen(happening.position))
        self._chosen = None
