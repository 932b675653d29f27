"""Scenarios: choose one, change it, see what it would do, run it; open recorded runs."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Footer, Static, TextArea

from workbench.tui.list_pane import ListPane
from workbench.tui.mode_tabs import ModeTabs
from workbench.tui.opened_run import OpenedRun
from workbench.tui.prompt_bar import PromptBar
from workbench.tui.saved_state import SavedState
from workbench.tui.scenarios.catalogue import (
    Entry,
    RunFacts,
    RunShelf,
    listed_as,
    scenario_entries,
)
from workbench.tui.scenarios.catalogue_pane import CataloguePane
from workbench.tui.scenarios.draft import (
    Assessment,
    Executor,
)
from workbench.tui.scenarios.drafting import Drafting
from workbench.tui.scenarios.form_pane import FormPane
from workbench.tui.scenarios.guide import SCENARIOS_GUIDE
from workbench.tui.scenarios.preview_pane import PreviewPane
from workbench.tui.scenarios.problem_pane import ProblemPane
from workbench.tui.text_pane import TextLine, TextPane

if TYPE_CHECKING:
    pass

RUNS_DIRECTORY: Final = Path("runs")
_LOOK_AGAIN_S: Final = 3.0
_FILTER: Final = "filter"


class ScenariosScreen(Drafting):
    """A list on the left, the scenario in the middle, what it would do on the right.

    Args:
        saved: what was selected last, and where the present selection is remembered.
    """

    MODE = "scenarios"
    GUIDE = SCENARIOS_GUIDE
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Run, open", id="scenarios.open",
                tooltip="Run the scenario; open the recorded run"),
        Binding("s", "run('simulate')", "Simulate", id="scenarios.simulate",
                tooltip="Run the scenario in the simulator"),
        Binding("r", "run('run')", "Engine", id="scenarios.engine",
                tooltip="Serve the scenario on the real engine"),
        Binding("b", "both", "Both", id="scenarios.both",
                tooltip="Simulate, serve on the engine, and compare the two"),
        Binding("e", "toggle_editor", "YAML", id="scenarios.editor",
                tooltip="The scenario as YAML or as a form"),
        Binding("E", "external_editor", "$EDITOR", show=False, id="scenarios.external_editor",
                tooltip="Edit the text in $EDITOR"),
        Binding("plus", "ask_setting", "Set", show=False, id="scenarios.set",
                tooltip="Set any key: KEY=VALUE, as with --set"),
        Binding("u", "undo", "Undo", show=False, id="scenarios.undo",
                tooltip="Take back all changes"),
        Binding("ctrl+s", "save", "Save", show=False, id="scenarios.save",
                tooltip="Save the scenario as a file"),
        Binding("c", "mark", "Compare", id="scenarios.compare",
                tooltip="Mark a recorded run; with a second one, compare the two"),
        Binding("slash", "filter", "Filter", id="scenarios.filter",
                tooltip="List only what has these words"),
        Binding("escape", "back", "Back", id="scenarios.back",
                tooltip="Back to the list"),
    ]  # fmt: skip

    def __init__(self, saved: SavedState) -> None:
        super().__init__(saved)
        self._shelf = RunShelf(RUNS_DIRECTORY)
        self._named = saved.scenario  # listed even if it is a file of another folder

    def compose(self) -> ComposeResult:
        """The panes."""
        yield ModeTabs(self.MODE)
        with Horizontal(id="body"):
            yield CataloguePane(id="catalogue")
            with Vertical(id="middle"):
                yield Static(id="title", markup=False)
                yield FormPane(id="form")
                yield TextArea.code_editor("", id="editor", theme="css", soft_wrap=False)
                yield TextPane(id="facts")
            yield PreviewPane(id="preview")
        yield ProblemPane(id="problems")
        yield Static(id="command", markup=False)
        yield PromptBar()
        yield Footer(show_command_palette=False)

    async def on_mount(self) -> None:
        """List what there is, and look again now and then."""
        self._look(first=True)
        self.set_interval(_LOOK_AGAIN_S, self._look)
        self.show_editor(self.saved.editor)
        self.query_one(CataloguePane).focus()

    # The list

    def look_again(self) -> None:
        """List scenarios and runs anew, whatever is shown."""
        self._look(first=True)

    def _look(self, first: bool = False) -> None:
        if first or self.is_current:
            self.run_worker(self._list_entries, thread=True, exclusive=True, group="list")

    def _list_entries(self) -> None:
        entries = [*scenario_entries(Path(), self._named), *self._shelf.entries()]
        self.app.call_from_thread(self._listed, entries)

    def _listed(self, entries: list[Entry]) -> None:
        pane = self.query_one(CataloguePane)
        first = pane.count == 0
        pane.show(entries, listed_as(entries, self.saved.scenario) if first else None)
        count = sum(entry.kind == "run" for entry in entries)
        self.query_one(ModeTabs).note(f"{count} runs" if count else "")
        if first:
            self._select(pane.entry)

    def on_list_pane_moved(self, event: ListPane.Moved) -> None:
        """Show what the cursor is on."""
        if event.pane.id == "catalogue":
            self._select(self.query_one(CataloguePane).entry)
        elif event.pane.id == "form":
            self.hint_row()

    def on_list_pane_chosen(self, event: ListPane.Chosen) -> None:
        """A double click does what Enter does."""
        if event.pane.id == "catalogue":
            self.action_open()
        elif event.pane.id == "form":
            self.query_one(FormPane).action_edit()
        elif event.pane.id == "problems":
            self.query_one(ProblemPane).action_jump_there()

    def _select(self, entry: Entry | None) -> None:
        self.set_class(entry is not None and entry.kind == "run", "-run")
        if entry is None:
            return
        self.saved.scenario = entry.name
        if entry.unreadable:
            self.forget_draft()
            self._show_unreadable(entry)
        elif entry.run is not None:
            self.forget_draft()
            self._show_run(entry, entry.run)
        elif self.draft is None or self.draft.name != entry.name:
            self.open_draft(entry)

    def _show_run(self, entry: Entry, facts: RunFacts) -> None:
        from workbench.metrics.summary_text import render

        self.query_one("#title", Static).update(f"{entry.title}  {facts.header.how_it_ended()}")
        text = "no summary: " + facts.header.how_it_ended()
        if facts.summary is not None:
            text = render(facts.summary, "table")
        self.query_one(TextPane).show([TextLine(line) for line in text.splitlines()])
        self.query_one(ProblemPane).show(None, (entry.note, *facts.header.notes))
        self.query_one("#command", Static).update(f"$ workbench tui {shlex.quote(entry.name)}")
        self._assess_text(facts)

    def _show_unreadable(self, entry: Entry) -> None:
        self.query_one("#title", Static).update(f"{entry.title}  cannot be read")
        self.query_one(TextPane).show([TextLine(entry.note, "data-bad")])
        self.query_one(ProblemPane).show(None, (entry.note,))
        self.query_one(PreviewPane).show(None, instead="")
        self.query_one("#command", Static).update("")

    def _assess_text(self, facts: RunFacts) -> None:
        self.run_worker(
            partial(self._preview_run, facts), thread=True, exclusive=True, group="preview"
        )

    def _preview_run(self, facts: RunFacts) -> None:
        from workbench.tui.scenarios.draft import assess_run

        found = assess_run(facts.header)
        self.app.call_from_thread(self._previewed, facts, found)

    def _previewed(self, facts: RunFacts, found: Assessment) -> None:
        entry = self.query_one(CataloguePane).entry
        if entry is not None and entry.run == facts:
            preview = self.query_one(PreviewPane)
            if found.loaded is None:  # what another entry showed is not this run's
                preview.show(None, instead=f"no preview: {found.trouble}")
            else:
                preview.show(found)

    # The line at the bottom

    def on_prompt_bar_changed(self, event: PromptBar.Changed) -> None:
        """Each key counts."""
        if event.purpose == _FILTER:
            self.query_one(CataloguePane).set_filter(event.value)
        else:
            self.draft_prompt_changed(event.purpose, event.value)

    def on_prompt_bar_submitted(self, event: PromptBar.Submitted) -> None:
        """Keep what was typed."""
        self.draft_prompt_submitted(event.purpose, event.value)

    def on_prompt_bar_cancelled(self, event: PromptBar.Cancelled) -> None:
        """Take back what was typed."""
        if event.purpose == _FILTER:
            self.query_one(CataloguePane).set_filter("")
        self.draft_prompt_cancelled(event.purpose)

    # Keys

    def action_open(self) -> None:
        """Run the scenario, or open the recorded run."""
        entry = self.query_one(CataloguePane).entry
        if entry is not None and entry.path is not None and entry.kind == "run":
            self.shell.open_recorded(entry.path)
        elif self.draft is not None:
            self.action_run(self.draft.executor)

    def action_run(self, executor: Executor) -> None:
        """Run the draft."""
        self.once_settled(partial(self._run, executor))

    def _run(self, executor: Executor) -> None:
        command = self.command_of(executor)
        if command is not None:
            self.shell.start_run(command)

    def action_both(self) -> None:
        """Simulate, then serve, and show the two side by side."""
        self.once_settled(self._run_both)

    def _run_both(self) -> None:
        simulated, served = self.command_of("simulate"), self.command_of("run")
        if simulated is None or served is None:
            return
        shell = self.shell

        def serve(a: OpenedRun) -> None:
            shell.notify("simulated; now on the engine")
            shell.start_run(served, lambda b: shell.compare_runs(a, b))

        shell.start_run(simulated, after=serve)

    def action_toggle_editor(self) -> None:
        """YAML or form."""
        if not self.has_class("-run"):
            self.show_editor(not self.has_class("-yaml"))
            self.on_catalogue_pane_inside()

    def on_catalogue_pane_inside(self) -> None:
        """To the form, the YAML or the metrics, whichever is there."""
        self.add_class("-inside")
        inner = "#facts" if self.has_class("-run") else "#editor"
        self.query_one(
            inner if self.has_class("-run") or self.has_class("-yaml") else "#form"
        ).focus()

    def action_mark(self) -> None:
        """Mark a run, or compare it with the marked one."""
        pane = self.query_one(CataloguePane)
        entry = pane.entry
        if entry is None or entry.path is None or entry.kind != "run":
            self.notify("compare takes recorded runs: move to one and press c", severity="warning")
        elif entry.unreadable:
            self.notify(f"{entry.title} cannot be read", severity="warning")
        elif pane.marked is None:
            pane.marked = entry.name
            self.notify(f"{entry.title} is A; press c on another run to compare it")
            pane.sync()
        elif pane.marked == entry.name:
            pane.marked = None
            pane.sync()
        else:
            self._compare(Path(pane.marked), entry.path)
            pane.marked = None

    def _compare(self, a: Path, b: Path) -> None:
        shell = self.shell
        shell.open_recorded(
            a,
            lambda first: shell.open_recorded(b, lambda second: shell.compare_runs(first, second)),
        )

    def action_filter(self) -> None:
        """Ask for words."""
        self.query_one(PromptBar).ask(_FILTER, "filter", "", "words that a name or its note holds")

    def action_back(self) -> None:
        """Back to the list."""
        self.remove_class("-inside")
        self.query_one(CataloguePane).focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that mean something else to what has the focus are not offered."""
        del parameters
        inside = self.focused is not None and self.focused.id != "catalogue"
        if action == "back":
            return inside
        return not (inside and action == "open")

    # What the shell asks

    def selection(self) -> dict[str, Any] | None:
        """The resolved scenario, or the summary of the run."""
        entry = self.query_one(CataloguePane).entry
        if entry is not None and entry.run is not None:
            return entry.run.summary
        return self.resolved()

    def command_line(self) -> str | None:
        """What the line with $ shows."""
        text = str(self.query_one("#command", Static).content)
        return text.removeprefix("$ ") or None
