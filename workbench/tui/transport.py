"""The keys that move a cursor through a run, the same on every screen that has one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from textual.binding import Binding, BindingType

from workbench.tui.store import Player

if TYPE_CHECKING:
    from workbench.tui.chart_screen import ChartScreen

    _Base = ChartScreen
else:
    _Base = object

TRANSPORT: Final[list[BindingType]] = [
    Binding("space", "toggle_play", "Play", id="player.toggle", tooltip="Play or pause"),
    Binding("full_stop,right", "step(1)", "Step", id="player.step", key_display=".",
            tooltip="One step on"),
    Binding("comma,left", "step(-1)", "Back", id="player.back", key_display=",",
            tooltip="One step back"),
    Binding("pagedown,shift+right", "screenful(1)", "Screen on", id="player.page_on", show=False,
            tooltip="As many steps on as the strip shows"),
    Binding("pageup,shift+left", "screenful(-1)", "Screen back", id="player.page_back", show=False,
            tooltip="As many steps back as the strip shows"),
    Binding("left_square_bracket", "zoom(-1)", "Zoom", id="player.zoom_in", key_display="[ ]",
            tooltip="Half as many steps a column"),
    Binding("right_square_bracket", "zoom(1)", "Zoom out", id="player.zoom_out", show=False,
            tooltip="Twice as many steps a column"),
    Binding("plus,greater_than_sign", "speed(1)", "Faster", id="player.faster", show=False,
            tooltip="Play faster: 0.1x to 1000x, and max"),
    Binding("minus,less_than_sign", "speed(-1)", "Slower", id="player.slower", show=False,
            tooltip="Play slower"),
    Binding("home", "start", "Start", id="player.start", show=False, tooltip="To the first step"),
    Binding("end", "follow", "Live", id="player.follow", show=False,
            tooltip="To the last step, and stay there while the run goes on"),
    Binding("m", "mark", "Mark", id="player.mark", show=False,
            tooltip="Mark this step, or remove its mark"),
    Binding("apostrophe", "next_mark", "Next mark", id="player.next_mark", show=False,
            tooltip="To the next mark"),
    Binding("o", "loop", "Loop", id="player.loop", show=False,
            tooltip="Loop: set its start, then its end, then remove it"),
    Binding("t", "axis", "Time/Step", id="player.axis", show=False,
            tooltip="Columns of equal time, or of equally many steps"),
    Binding("w", "replica", "Replica", id="player.replica", show=False,
            tooltip="The next replica, at the same time"),
]  # fmt: skip
_SCREENFUL: Final = 100  # columns


class Transport(_Base):
    """Actions of `TRANSPORT` for a screen that has a `player`."""

    @property
    def player(self) -> Player:
        """The cursor that the keys move."""
        raise NotImplementedError

    def action_toggle_play(self) -> None:
        """Play or pause."""
        self.player.toggle()
        self.redraw()

    def action_step(self, count: int) -> None:
        """So many columns on: of one step each, unless zoomed out."""
        self.player.step(count << self.player.zoom)
        self.redraw()

    def action_screenful(self, count: int) -> None:
        """A screenful on or back."""
        self.player.step(count * (_SCREENFUL << self.player.zoom))
        self.redraw()

    def action_zoom(self, notches: int) -> None:
        """More or fewer steps a column."""
        self.player.zoom_out(notches)
        self.redraw()

    def action_speed(self, notches: int) -> None:
        """Faster or slower."""
        self.player.faster(notches)
        self.redraw()

    def action_start(self) -> None:
        """To the first step."""
        self.player.pause()
        self.player.seek(0)
        self.redraw()

    def action_follow(self) -> None:
        """To the last step."""
        self.player.follow()
        self.redraw()

    def action_mark(self) -> None:
        """Mark the step."""
        if not self.player.empty:
            self.player.mark()
            self.redraw()

    def action_next_mark(self) -> None:
        """To the next mark."""
        self.player.pause()
        if not self.player.next_mark():
            self.notify("there is no mark; m sets one", timeout=2)
        self.redraw()

    def action_loop(self) -> None:
        """Set a loop."""
        self.notify(self.player.cycle_loop(), timeout=3)
        self.redraw()

    def action_axis(self) -> None:
        """Time or steps."""
        self.player.by_time = not self.player.by_time
        self.redraw()

    def action_replica(self) -> None:
        """The next replica."""
        if len(self.player.store.replicas) == 1:
            self.notify("this run has one replica", timeout=2)
            return
        self.player.go_to_replica(self.player.replica + 1)
        self.redraw()
