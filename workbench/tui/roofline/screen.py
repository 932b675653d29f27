"""The roofline screen: it moves as you go through the run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import Footer

from workbench.tui.chart_pane import StepChosen
from workbench.tui.chart_screen import ChartScreen
from workbench.tui.live.scrubber import Scrubber
from workbench.tui.mode_tabs import ModeTabs
from workbench.tui.roofline.guide import GUIDE
from workbench.tui.roofline.header import RooflineHeader
from workbench.tui.roofline.plot import PlotPane
from workbench.tui.roofline.state import RooflineState
from workbench.tui.roofline.table import TablePane
from workbench.tui.screen_help import ScreenHelp
from workbench.tui.store import Player, RunStore
from workbench.tui.transport import TRANSPORT, Transport


class RooflineScreen(Transport, ChartScreen):
    """A run and the place in it that is looked at.

    Args:
        store: the run; it may grow.
        player: the cursor.
    """

    MODE: ClassVar[str] = "roofline"
    GUIDE: ClassVar[ScreenHelp] = GUIDE
    BINDINGS: ClassVar[list[BindingType]] = [
        *TRANSPORT,
        Binding("e", "explain", "Explain", id="roofline.explain",
                tooltip="Say of each class what bounds it, in words"),
        Binding("v", "view", "Plot/Table", id="roofline.view",
                tooltip="On a narrow screen: the plot, or the table"),
    ]  # fmt: skip
    DEFAULT_CSS = """
    RooflineScreen { layout: vertical; }
    RooflineScreen .row { height: 1fr; }
    RooflineScreen PlotPane { width: 6fr; margin: 0 1 0 0; }
    RooflineScreen TablePane { width: 5fr; }
    RooflineScreen.-short ModeTabs { display: none; }
    RooflineScreen.-short Scrubber { height: 1; }
    RooflineScreen.-narrow PlotPane { display: none; }
    RooflineScreen.-narrow.-plot PlotPane { display: block; width: 1fr; }
    RooflineScreen.-narrow.-plot TablePane { display: none; }
    RooflineScreen.-sentences PlotPane { display: none; }
    """

    def __init__(self, store: RunStore, player: Player) -> None:
        super().__init__()
        self.state = RooflineState(store, player)

    @property
    def player(self) -> Player:
        """The cursor."""
        return self.state.player

    def compose(self) -> ComposeResult:
        """The step, its roofline, its classes, and the whole run below."""
        yield ModeTabs(self.MODE)
        yield RooflineHeader(self.state)
        with Horizontal(classes="row"):
            yield PlotPane(self.state)
            yield TablePane(self.state)
        yield Scrubber(self.player)
        yield Footer(show_command_palette=False)

    def before_frame(self, seconds: float) -> None:
        """Let the run's time pass."""
        self.player.tick(seconds)

    def on_step_chosen(self, message: StepChosen) -> None:
        """Go to a step."""
        self.player.pause()
        self.player.seek(message.position)
        self.redraw()

    def action_explain(self) -> None:
        """Sentences, or the plot again."""
        self.state.detail = not self.state.detail
        self.set_class(self.state.detail, "-sentences")
        self.redraw()

    def action_view(self) -> None:
        """The plot or the table, where there is no room for both."""
        self.toggle_class("-plot")
        self.redraw()

    def on_screen_resume(self) -> None:
        """Say again what the tabs say beside the modes."""
        header = self.state.store.header
        for tabs in self.query(ModeTabs):
            tabs.note(f"{header.model.rpartition('/')[2]} on {header.gpu}")

    def selection(self) -> dict[str, Any] | None:
        """The roofline of the step under the cursor."""
        found = self.state.now()
        return None if found is None else asdict(found)
