"""Why: where the time of all requests of a run went, and its metrics beside that."""

from __future__ import annotations

import shlex
from functools import partial
from typing import Any, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import Footer

from workbench.analysis.explain import explain_run
from workbench.analysis.source import MissingDetailError, RunTables
from workbench.metrics.summary_text import render
from workbench.tui.mode_tabs import ModeTabs
from workbench.tui.requests.explaining import frozen
from workbench.tui.screen_help import ScreenHelp
from workbench.tui.store import RunStore
from workbench.tui.text_pane import TextLine, TextPane
from workbench.tui.why.lines import explanation_lines
from workbench.tui.workbench_screen import WorkbenchScreen

_LOOK_AGAIN_S: Final = 1.0

WHY_GUIDE: Final = ScreenHelp(
    title="why",
    how_to_read=(
        ("left", "what `workbench explain` says of the run; enter on a line with ▸ goes there"),
        ("right", "the metrics of the run, as `workbench simulate` prints them"),
        ("causes", "every ns of a latency has one cause, so that they sum to it exactly"),
    ),
    words=("TTFT", "TPOT", "ITL", "E2E", "goodput", "prefill", "decode", "retract"),
)


class WhyScreen(WorkbenchScreen):
    """The explanation of a run.

    Args:
        store: the run; while it grows the explanation is made anew now and then.
    """

    MODE = "why"
    GUIDE = WHY_GUIDE
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "app.focus_next", "Other side", id="why.other", tooltip="To the other side"),
    ]  # fmt: skip

    def __init__(self, store: RunStore) -> None:
        super().__init__()
        self._store = store
        self._version = -1
        self._explanation = TextPane(id="explanation")
        self._metrics = TextPane(id="metrics")

    def compose(self) -> ComposeResult:
        """Explanation and metrics side by side."""
        yield ModeTabs(self.MODE)
        with Horizontal():
            yield self._explanation
            yield self._metrics
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Explain, and again while the run grows."""
        self._explanation.focus()
        self.set_interval(_LOOK_AGAIN_S, self._look)
        self.call_after_refresh(self._look)

    def _look(self) -> None:
        if not self.is_current or self._version == self._store.requests.version:
            return
        self._version = self._store.requests.version
        path = self._store.path
        self.query_one(ModeTabs).note(self._store.header.name if path is None else path.name)
        self._metrics.show(self._metric_lines())
        work = partial(self._explain, frozen(self._store))
        self.run_worker(work, thread=True, exclusive=True, group="explain")

    def _metric_lines(self) -> list[TextLine]:
        if self._store.summary is None:
            return [TextLine(self._store.header.how_it_ended(), "data-axis")]
        return [TextLine(line) for line in render(self._store.summary, "table").splitlines()]

    def _explain(self, run: RunTables) -> None:
        try:
            lines = explanation_lines(explain_run(run, most=8))
        except MissingDetailError as error:
            lines = [TextLine(str(error), "data-warning")]
        self.app.call_from_thread(self._explanation.show, lines)

    def on_text_pane_followed(self, event: TextPane.Followed) -> None:
        """Go there."""
        self.shell.go_to(event.target)

    def selection(self) -> dict[str, Any] | None:
        """The summary of the run."""
        return self._store.summary

    def command_line(self) -> str | None:
        """`workbench explain` of the run."""
        path = self._store.path
        return None if path is None else shlex.join(("workbench", "explain", str(path)))
