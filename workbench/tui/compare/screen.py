"""The compare screen: two runs locked together, and what `workbench compare` says of them."""

from __future__ import annotations

import shlex
from typing import Any, ClassVar

from textual import events, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import Footer
from textual.worker import Worker, WorkerState

from workbench.analysis.source import RunTables
from workbench.record.run_record import RunReader
from workbench.tui.chart_pane import StepChosen
from workbench.tui.chart_screen import ChartScreen
from workbench.tui.compare.deltas import DeltaPane
from workbench.tui.compare.findings import FindingsPane
from workbench.tui.compare.guide import GUIDE
from workbench.tui.compare.header import CompareHeader
from workbench.tui.compare.scatter import ScatterPane
from workbench.tui.compare.state import VIEWS, CompareState
from workbench.tui.compare.strips import StripPair
from workbench.tui.live.scrubber import Scrubber
from workbench.tui.mode_tabs import ModeTabs
from workbench.tui.opened_run import OpenedRun
from workbench.tui.screen_help import ScreenHelp
from workbench.tui.store import Player
from workbench.tui.store.pairing import LOCKS
from workbench.tui.transport import TRANSPORT, Transport


class CompareScreen(Transport, ChartScreen):
    """Two runs; a run that is going on is shown as far as it is.

    Args:
        a: the run that leads.
        b: the run that is held against it.
    """

    MODE: ClassVar[str] = "compare"
    GUIDE: ClassVar[ScreenHelp] = GUIDE
    BINDINGS: ClassVar[list[BindingType]] = [
        *TRANSPORT,
        Binding("l", "lock", "Lock", id="compare.lock", show=False,
                tooltip="Lock the runs by arrival, by time or by step"),
        Binding("n", "difference(True)", "Diff", id="compare.next",
                tooltip="To the next step where B decides otherwise"),
        Binding("N", "difference(False)", "Previous diff", id="compare.previous", show=False,
                tooltip="To the one before"),
        Binding("e", "explain", "Explain", id="compare.explain",
                tooltip="To the first divergent decision, and what both schedulers did"),
        Binding("v", "view", "View", id="compare.view", show=False,
                tooltip="Metrics, header differences, or the first divergence"),
        Binding("s", "swap", "Swap", id="compare.swap", show=False, tooltip="Make B lead"),
        Binding("d", "plot", "Plot", id="compare.plot", show=False,
                tooltip="On a narrow screen: the findings, or TTFT of each request"),
        Binding("up", "scroll(-1)", "Scroll up", id="compare.up", show=False),
        Binding("down", "scroll(1)", "Scroll down", id="compare.down", show=False),
    ]  # fmt: skip
    DEFAULT_CSS = """
    CompareScreen { layout: vertical; }
    CompareScreen .row { height: 1fr; }
    CompareScreen FindingsPane { width: 7fr; margin: 0 1 0 0; }
    CompareScreen ScatterPane { width: 4fr; }
    CompareScreen.-short ModeTabs { display: none; }
    CompareScreen.-short StripPair { height: 6; }
    CompareScreen.-short DeltaPane { height: 3; }
    CompareScreen.-short Scrubber { height: 1; }
    CompareScreen.-tiny StripPair, CompareScreen.-tiny DeltaPane { display: none; }
    CompareScreen.-very-tall StripPair { height: 20; }
    CompareScreen.-narrow ScatterPane { display: none; }
    CompareScreen.-narrow.-plot ScatterPane { display: block; }
    CompareScreen.-narrow.-plot FindingsPane { display: none; }
    """

    def __init__(self, a: OpenedRun, b: OpenedRun) -> None:
        super().__init__()
        self.state = CompareState(a, b)
        self._asked = False

    @property
    def player(self) -> Player:
        """The cursor of A."""
        return self.state.player

    def compose(self) -> ComposeResult:
        """Facts, strips, differences, findings, and the whole of A below."""
        yield ModeTabs(self.MODE)
        yield CompareHeader(self.state)
        yield StripPair(self.state)
        yield DeltaPane(self.state)
        with Horizontal(classes="row"):
            yield FindingsPane(self.state)
            yield ScatterPane(self.state)
        yield Scrubber(self.player)
        yield Footer(show_command_palette=False)

    def before_frame(self, seconds: float) -> None:
        """Let the run's time pass; compare once both runs have ended."""
        self.player.tick(seconds)
        ended = not (self.state.a.running or self.state.b.running)
        if ended and not self._asked:
            self._asked = True
            self._compare(self.state.a, self.state.b)

    @work(thread=True, exclusive=True, group="compare", exit_on_error=False)
    def _compare(self, a: OpenedRun, b: OpenedRun) -> None:
        """Ask for the verdict in the background."""
        from workbench.analysis.compare import compare_runs

        found = compare_runs(_tables(a), _tables(b))
        self.app.call_from_thread(self._take, found, None)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Say why there is no verdict."""
        if event.worker.group == "compare" and event.state is WorkerState.ERROR:
            error = event.worker.error
            self._take(None, f"{error}" or type(error).__name__)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Columns of this screen are steps of A, never equal times."""
        return action != "axis" and super().check_action(action, parameters)

    def _take(self, found: Any, trouble: str | None) -> None:
        self.state.comparison, self.state.trouble = found, trouble
        first = found.divergence.step if found is not None else -1
        if first >= 0 and self.player.position in (0, self.player.head):
            self._go_to_divergence()
        self.redraw()

    def selection(self) -> dict[str, Any] | None:
        """The two steps side by side."""
        state = self.state
        if state.empty:
            return None
        other = state.pairing().position_in_b(self.player.position)
        return {
            "lock": state.lock,
            "a": {"run": state.a.label, "step": self.player.steps.at(self.player.position)},
            "b": {
                "run": state.b.label,
                "step": state.pairing().b.at(other) if other >= 0 else None,
            },
        }

    def command_line(self) -> str | None:
        """The command that prints the comparison."""
        paths = [run.store.path for run in (self.state.a, self.state.b)]
        if None in paths:
            return None
        return shlex.join(("workbench", "compare", *(str(path) for path in paths)))

    def on_step_chosen(self, message: StepChosen) -> None:
        """Go to a step of A."""
        self.player.pause()
        self.player.seek(message.position)
        self.redraw()

    def action_lock(self) -> None:
        """Lock by something else."""
        self.state.lock = LOCKS[(LOCKS.index(self.state.lock) + 1) % len(LOCKS)]
        self.redraw()

    def action_difference(self, forward: bool) -> None:
        """To the next step where B decides otherwise."""
        if self.state.empty:
            return
        found = self.state.pairing().next_difference(self.player.position, forward)
        if found is None:
            self.notify("no further difference of batches this way", timeout=2)
            return
        self.player.pause()
        self.player.seek(found)
        self.redraw()

    def action_explain(self) -> None:
        """To the first divergence."""
        if self.state.comparison is None:
            self.notify("the comparison is not there yet", timeout=2)
            return
        self.state.view, self.state.scroll = "divergence", 0
        self.remove_class("-plot")
        self._go_to_divergence()
        self.redraw()

    def action_view(self) -> None:
        """The next view of the findings."""
        at = VIEWS.index(self.state.view)
        self.state.view, self.state.scroll = VIEWS[(at + 1) % len(VIEWS)], 0
        self.remove_class("-plot")
        self.redraw()

    def action_swap(self) -> None:
        """Make B lead."""
        self.state.swap()
        self._asked = False
        scrubber = self.query_one(Scrubber)
        scrubber.show(self.player)
        self.redraw()

    def action_plot(self) -> None:
        """Findings or points, where there is room for one."""
        self.toggle_class("-plot")
        self.redraw()

    def action_scroll(self, by: int) -> None:
        """Scroll the findings."""
        self.state.scroll = max(self.state.scroll + by, 0)
        self.redraw()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Scroll the findings."""
        del event
        self.action_scroll(2)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Scroll the findings."""
        del event
        self.action_scroll(-2)

    def on_screen_resume(self) -> None:
        """Say what is compared beside the modes."""
        for tabs in self.query(ModeTabs):
            tabs.note(f"{self.state.a.label} and {self.state.b.label}")

    def _go_to_divergence(self) -> None:
        comparison = self.state.comparison
        if comparison is None or comparison.divergence.step < 0:
            return
        found = comparison.divergence
        self.player.pause()
        if found.replica != self.player.replica:
            self.player.go_to_replica(found.replica)
        self.player.seek(self.player.steps.position_of(found.step))


def _tables(run: OpenedRun) -> RunTables:
    """The record if there is one, else what is in memory."""
    return RunReader(run.store.path) if run.store.path is not None else run.store
