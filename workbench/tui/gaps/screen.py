"""The gaps screen: what warming up and CUDA Graphs do to a workload."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer

from workbench.profile.latest_gaps import latest_stories
from workbench.tui.chart_screen import ChartScreen
from workbench.tui.gaps.pane import StoryPane
from workbench.tui.mode_tabs import ModeTabs
from workbench.tui.screen_help import ScreenHelp

GUIDE: Final = ScreenHelp(
    title="Gaps",
    how_to_read=(
        (
            "lanes",
            ("the same length of time twice: launched kernel by kernel, and replayed as a CUDA "
            "Graph. A column is as high as the GPU was busy in it; the graph's lane ends sooner "
            "if its steps take less."),
        ),
        (
            "figures",
            ("of one step once everything is warm. Times were taken without the profiler, gaps "
            "with it, which makes launches slower."),
        ),
        (
            "first call",
            ("in a process that had compiled and loaded nothing: what each cause took. They sum "
            "to the whole."),
        ),
    ),
    words=("step", "decode"),
)  # fmt: skip


class GapsScreen(ChartScreen):
    """The stories that were measured last in the current folder."""

    MODE: ClassVar[str] = "gaps"
    GUIDE: ClassVar[ScreenHelp] = GUIDE
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n,right,down", "next(1)", "Next workload", id="gaps.next", key_display="n",
                tooltip="The next workload"),
        Binding("N,left,up", "next(-1)", "Previous", id="gaps.previous", key_display="N",
                tooltip="The one before"),
        Binding("v", "view", "Figures/First calls", id="gaps.view",
                tooltip="On a narrow screen: the figures, or what first calls took"),
    ]  # fmt: skip
    DEFAULT_CSS = """
    GapsScreen { layout: vertical; }
    GapsScreen StoryPane { margin: 1 1 0 1; }
    GapsScreen.-short ModeTabs { display: none; }
    GapsScreen.-short StoryPane { margin: 0 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._known = latest_stories()

    def compose(self) -> ComposeResult:
        """One workload at a time."""
        yield ModeTabs(self.MODE)
        yield StoryPane(self._known.stories, self._known.trouble)
        yield Footer(show_command_palette=False)

    def on_screen_resume(self) -> None:
        """Say where the figures come from."""
        for tabs in self.query(ModeTabs):
            tabs.note(self._known.source)

    def action_next(self, by: int) -> None:
        """Another workload."""
        pane = self.query_one(StoryPane)
        if pane.stories:
            pane.chosen = (pane.chosen + by) % len(pane.stories)
            self.redraw()

    def action_view(self) -> None:
        """Figures or first calls, where there is no room for both."""
        pane = self.query_one(StoryPane)
        pane.first_calls = not pane.first_calls
        self.redraw()

    def selection(self) -> dict[str, Any] | None:
        """The story that is shown."""
        pane = self.query_one(StoryPane)
        return asdict(pane.stories[pane.chosen]) if pane.stories else None

    def command_line(self) -> str | None:
        """The command that measures the same."""
        return "workbench profile gaps --before eager --after graph"
