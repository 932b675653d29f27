"""The live screen: charts of a run, going on or recorded, and the keys to move in it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Footer

from workbench.tui.chart_pane import RequestChosen, StepChosen
from workbench.tui.chart_screen import ChartScreen
from workbench.tui.live.event_log import EventPane
from workbench.tui.live.guide import GUIDE
from workbench.tui.live.header import HeaderPane
from workbench.tui.live.latencies import LatencyPane
from workbench.tui.live.pages import PagesPane
from workbench.tui.live.radix import RadixPane
from workbench.tui.live.scrubber import Scrubber
from workbench.tui.live.state import PAGE_MODES, LiveState
from workbench.tui.live.strip import StripPane
from workbench.tui.mode_tabs import ModeTabs
from workbench.tui.screen_help import ScreenHelp
from workbench.tui.store import Player, RunStore
from workbench.tui.store.happenings import FILTERS
from workbench.tui.transport import TRANSPORT, Transport


class LiveScreen(Transport, ChartScreen):
    """A run and the place in it that is looked at.

    Args:
        store: the run; it may grow.
        player: the cursor.
    """

    AUTO_FOCUS = "EventPane"
    MODE: ClassVar[str] = "live"
    GUIDE: ClassVar[ScreenHelp] = GUIDE
    BINDINGS: ClassVar[list[BindingType]] = [
        *TRANSPORT,
        Binding("k", "page_mode", "Pages", id="live.page_mode",
                tooltip="Colour the page map by state, owner, age or references"),
        Binding("f", "filter", "Filter", id="live.filter", show=False, tooltip="List other events"),
        Binding("F", "fork", "Fork", id="live.fork",
                tooltip="Simulate on from this step with one setting changed, and compare"),
        Binding("r", "show_pane('radix')", "Prefix cache", id="live.radix", show=False,
                tooltip="Show or hide the prefix cache"),
        Binding("v", "show_pane('events')", "Events", id="live.events", show=False,
                tooltip="Show or hide the event log"),
        Binding("x", "cancel_run", "End run", id="live.cancel", show=False,
                tooltip="End the run that is going on; what there is of it is kept"),
        Binding("z", "zoom_pane", "Zoom pane", id="live.zoom_pane", show=False,
                tooltip="Give the whole screen to the pane that tab has chosen, or take it back"),
        Binding("n", "select(1)", "Next request", id="live.next_request", show=False,
                tooltip="Light up the next request that holds pages at this step"),
        Binding("N", "select(-1)", "Previous request", id="live.previous_request", show=False,
                tooltip="Light up the one before"),
        Binding("escape", "deselect", "Clear", id="live.deselect", show=False,
                tooltip="Light up nothing; or else end the run that is going on"),
    ]  # fmt: skip
    DEFAULT_CSS = """
    LiveScreen { layout: vertical; }
    LiveScreen .-maximized { width: 1fr; height: 1fr; margin: 0; }
    LiveScreen .row { height: 3fr; }
    LiveScreen .low { height: 2fr; }
    LiveScreen PagesPane, LiveScreen RadixPane { width: 3fr; margin: 0 1 0 0; }
    LiveScreen LatencyPane, LiveScreen EventPane { width: 2fr; }
    LiveScreen.-short StripPane { height: 8; }
    LiveScreen.-very-tall StripPane { height: 19; }
    LiveScreen.-short ModeTabs { display: none; }
    LiveScreen.-short Scrubber { height: 1; }
    LiveScreen.-short .low { display: none; }
    LiveScreen.-short .low.-wanted { display: block; height: 4fr; }
    LiveScreen.-short.-swapped .row { display: none; }
    LiveScreen.-tiny StripPane { height: 1fr; }
    LiveScreen.-tiny .row { display: none; }
    LiveScreen.-tiny.-swapped StripPane { display: none; }
    LiveScreen.-narrow PagesPane, LiveScreen.-narrow RadixPane { width: 1fr; }
    LiveScreen.-narrow LatencyPane, LiveScreen.-narrow EventPane { width: 1fr; }
    """

    def __init__(self, store: RunStore, player: Player) -> None:
        super().__init__()
        self.state = LiveState(store, player)

    @property
    def player(self) -> Player:
        """The cursor."""
        return self.state.player

    def compose(self) -> ComposeResult:
        """From the most general to the most special, and the whole run below."""
        yield ModeTabs(self.MODE)
        yield HeaderPane(self.state)
        yield StripPane(self.state)
        with Horizontal(classes="row"):
            yield PagesPane(self.state)
            yield LatencyPane(self.state)
        with Horizontal(classes="low"):
            yield RadixPane(self.state)
            yield EventPane(self.state)
        yield Scrubber(self.player)
        yield Footer(show_command_palette=False)

    def before_frame(self, seconds: float) -> None:
        """Let the run's time pass."""
        self.player.tick(seconds)
        if self.state.paged:
            self.state.catch_up()

    def selection(self) -> dict[str, Any] | None:
        """The chosen request, or else the step under the cursor."""
        request, player = self.player.selected_request, self.player
        if request is not None:
            return {"request": self.state.store.requests.row(request)}
        return None if player.empty else {"step": player.steps.at(player.position)}

    def command_line(self) -> str | None:
        """The command that explains the chosen request, or shows this run."""
        path = self.state.store.path
        if path is None:
            current = getattr(self.app, "current", None)
            return None if current is None else str(current.command_line())
        if self.player.selected_request is not None:
            return shlex.join(
                ("workbench", "explain", str(path), "--request", str(self.player.selected_request))
            )
        return shlex.join(("workbench", "tui", str(path)))

    def reveal_request(self, request_id: int) -> bool:
        """Light a request up, and go to its first step if it is not there now."""
        self.player.selected_request = request_id
        steps = self.state.chosen_steps()
        if steps is not None and len(steps.prefill):
            end = max((last for _, last in steps.decode), default=int(steps.prefill[-1]))
            if not steps.prefill[0] <= self.player.position <= end:
                self.player.pause()
                self.player.seek(int(steps.prefill[0]))
        self.redraw()
        return True

    def on_request_chosen(self, message: RequestChosen) -> None:
        """Light a request up everywhere; the same one again: no longer."""
        again = message.request_id == self.player.selected_request
        self.player.selected_request = None if again else message.request_id
        self._say_chosen()
        self.redraw()

    def on_step_chosen(self, message: StepChosen) -> None:
        """Go to a step."""
        self.player.pause()
        self.player.seek(message.position)
        self.redraw()

    def action_page_mode(self) -> None:
        """Show the next thing on the page map."""
        at = PAGE_MODES.index(self.state.page_mode)
        self.state.page_mode = PAGE_MODES[(at + 1) % len(PAGE_MODES)]
        self.redraw()

    def action_filter(self) -> None:
        """List the next kind of events."""
        names = list(FILTERS)
        self.state.filter = names[(names.index(self.state.filter) + 1) % len(names)]
        self.redraw()

    def action_show_pane(self, pane: str) -> None:
        """Show or hide a pane; on a low screen it takes the place of the row above."""
        other = {"radix": "events", "events": "radix"}[pane]
        widget, low = self.query_one(f"#{pane}"), self.query_one(".low")
        if self.has_class("-short"):
            shown = low.has_class("-wanted") and bool(widget.display)
            low.set_class(not shown, "-wanted")
            self.set_class(not shown, "-swapped")
            widget.display, self.query_one(f"#{other}").display = True, self.has_class("-normal")
        else:
            widget.display = not widget.display
        self.redraw()

    def action_zoom_pane(self) -> None:
        """Maximise the focused pane, or the page map if none is."""
        if self.maximized is not None:
            self.minimize()
            return
        self.maximize(self.focused or self.query_one(PagesPane), container=False)

    def action_select(self, by: int) -> None:
        """Choose the next of the requests that hold pages now."""
        holders = self._holders()
        if not holders:
            self.notify("no request holds pages at this step", timeout=2)
            return
        here = self.player.selected_request
        later = [r for r in holders if here is None or r > here]
        earlier = [r for r in holders if here is not None and r < here]
        if by > 0:
            chosen = later[0] if later else holders[0]
        else:
            chosen = earlier[-1] if earlier else holders[-1]
        self.player.selected_request = chosen
        self._say_chosen()
        self.redraw()

    def action_deselect(self) -> None:
        """Light up nothing; where nothing is lit up, end the run that is going on."""
        if self.player.selected_request is None and self.shell.cancel_run():
            return
        self.player.selected_request = None
        self._say_chosen()
        self.redraw()

    def action_cancel_run(self) -> None:
        """End the run that is going on."""
        if not self.shell.cancel_run():
            self.notify("no run is going on", severity="warning", timeout=2)

    def action_fork(self) -> None:
        """Ask for a setting, simulate on from here with it, and compare."""
        from workbench.tui.compare.fork import fork_here

        fork_here(self, self.state.store, self.player)

    def on_screen_resume(self) -> None:
        """Say again what the tabs say beside the modes."""
        self._say_chosen()

    def _holders(self) -> list[int]:
        if not self.state.paged or self.player.empty:
            return []
        pages, _ = self.state.memory()
        return sorted({owner for owner in pages.owner.tolist() if owner >= 0})

    def _say_chosen(self) -> None:
        """The tabs' line says what is chosen, or which run this is."""
        request, store = self.player.selected_request, self.state.store
        name = store.path.name if store.path is not None else store.header.name
        model = store.header.model.rpartition("/")[2].removesuffix(".json")  # it may be a file's
        text = f"{name}  {model} on {store.header.gpu}"
        if request is not None:
            row = store.requests.row(request)
            text = (
                f"r{request}: {row['prompt_tokens']:,} tok in, {row['cached_tokens']:,} cached, "
                f"{row['output_tokens']:,} out  esc clears"
            )
        for tabs in self.query(ModeTabs):
            tabs.note(text)

    def panes(self) -> Iterable[Widget]:
        """All charts, for tests and measurements."""
        return self.query("ChartPane")
