"""Scenarios: choose one, change it, see what it would do, run it; open recorded runs."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Footer, Static, TextArea

from workbench.tui.child_run import RunCommand
from workbench.tui.list_pane import ListPane
from workbench.tui.mode_tabs import ModeTabs
from workbench.tui.opened_run import OpenedRun
from workbench.tui.prompt_bar import PromptBar
from workbench.tui.saved_state import SavedState
from workbench.tui.scenarios.catalogue import (
    Entry,
    RunFacts,
    file_entries,
    run_entries,
    shipped_entries,
)
from workbench.tui.scenarios.catalogue_pane import CataloguePane
from workbench.tui.scenarios.draft import (
    RUN_SECTION,
    Assessment,
    Draft,
    Executor,
    assess,
    detail_named,
    executor_named,
    shown_command,
)
from workbench.tui.scenarios.form_pane import FormPane
from workbench.tui.scenarios.guide import SCENARIOS_GUIDE
from workbench.tui.scenarios.preview_pane import PreviewPane
from workbench.tui.scenarios.problem_pane import ProblemPane
from workbench.tui.text_pane import TextLine, TextPane
from workbench.tui.workbench_screen import WorkbenchScreen

if TYPE_CHECKING:
    from workbench.tui.scenarios.form_rows import FormRow

RUNS_DIRECTORY: Final = Path("runs")
_LOOK_AGAIN_S: Final = 3.0
_FILTER, _EDIT, _SETTING, _SAVE = "filter", "edit", "setting", "save"


class ScenariosScreen(WorkbenchScreen):
    """A list on the left, the scenario in the middle, what it would do on the right.

    Args:
        saved: what was selected last, and where the present selection is remembered.
    """

    MODE = "scenarios"
    GUIDE = SCENARIOS_GUIDE
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Run", id="scenarios.open",
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
        super().__init__()
        self._saved = saved
        self._draft: Draft | None = None
        self._found: Assessment | None = None
        self._resolved: dict[str, Any] | None = None
        self._row: FormRow | None = None
        self._before: Draft | None = None

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
        self._show_editor(self._saved.editor)
        self.query_one(CataloguePane).focus()

    @property
    def settled(self) -> bool:
        """Whether everything about what is selected has been worked out."""
        if self._draft is None:
            return self.query_one(CataloguePane).entry is not None
        return self._found is not None and self._found.draft is self._draft

    # The list

    def _look(self, first: bool = False) -> None:
        if first or self.is_current:
            self.run_worker(self._list_entries, thread=True, exclusive=True, group="list")

    def _list_entries(self) -> None:
        entries = [*shipped_entries(), *file_entries(Path()), *run_entries(RUNS_DIRECTORY)]
        self.app.call_from_thread(self._listed, entries)

    def _listed(self, entries: list[Entry]) -> None:
        pane = self.query_one(CataloguePane)
        first = pane.count == 0
        pane.show(entries, self._saved.scenario if first else None)
        count = sum(entry.kind == "run" for entry in entries)
        self.query_one(ModeTabs).note(f"{count} runs" if count else "")
        if first:
            self._select(pane.entry)

    def on_list_pane_moved(self, event: ListPane.Moved) -> None:
        """Show what the cursor is on."""
        if event.pane.id == "catalogue":
            self._select(self.query_one(CataloguePane).entry)
        elif event.pane.id == "form":
            self._hint_row()

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
        self._saved.scenario = entry.name
        if entry.run is not None:
            self._draft = None
            self._show_run(entry, entry.run)
        elif self._draft is None or self._draft.name != entry.name:
            self._open_draft(entry)

    def _show_run(self, entry: Entry, facts: RunFacts) -> None:
        from workbench.summary import render

        self.query_one("#title", Static).update(f"{entry.title}  {facts.header.how_it_ended()}")
        text = "no summary: " + facts.header.how_it_ended()
        if facts.summary is not None:
            text = render(facts.summary, "table")
        self.query_one(TextPane).show([TextLine(line) for line in text.splitlines()])
        self.query_one(ProblemPane).show(None, (entry.note, *facts.header.notes))
        self.query_one("#command", Static).update(f"$ workbench tui {shlex.quote(entry.name)}")
        self._assess_text(facts)

    def _assess_text(self, facts: RunFacts) -> None:
        self.run_worker(
            partial(self._preview_run, facts), thread=True, exclusive=True, group="assess"
        )

    def _preview_run(self, facts: RunFacts) -> None:
        from workbench.tui.scenarios.draft import assess_resolved

        found = assess_resolved(facts.header.scenario, facts.header.name)
        self.app.call_from_thread(self._previewed, facts, found)

    def _previewed(self, facts: RunFacts, found: Assessment) -> None:
        entry = self.query_one(CataloguePane).entry
        if entry is not None and entry.run == facts:
            self.query_one(PreviewPane).show(found)

    # The draft

    def _open_draft(self, entry: Entry) -> None:
        from workbench.scenario_errors import ScenarioErrors

        saved = self._saved
        try:
            self._draft = Draft.of(
                entry.name, executor_named(saved.executor), detail_named(saved.detail)
            )
        except ScenarioErrors as errors:
            self.query_one(ProblemPane).show(None, tuple(str(errors).splitlines()))
            return
        self._resolved = None
        editor = self.query_one(TextArea)
        with self.prevent(TextArea.Changed):
            editor.load_text(self._draft.text)
        self._assess()

    def _change(self, draft: Draft) -> None:
        self._draft = draft
        self._saved.executor, self._saved.detail = draft.executor, draft.detail
        self._assess()

    def _assess(self) -> None:
        draft = self._draft
        if draft is not None:
            self._title(draft)
            work = partial(self._assess_in_thread, draft)
            self.run_worker(work, thread=True, exclusive=True, group="assess")

    def _assess_in_thread(self, draft: Draft) -> None:
        found = assess(draft)
        self.app.call_from_thread(self._assessed, found)

    def _assessed(self, found: Assessment) -> None:
        draft = self._draft
        if found.draft is not draft or draft is None:
            return
        self._found = found
        if found.loaded is not None:
            self._resolved = found.loaded.resolved
        if self._resolved is not None:
            from workbench.tui.scenarios.form_rows import form_rows

            wrong = _wrong_keys(found)
            self.query_one(FormPane).show(form_rows(draft, self._resolved), wrong)
        self.query_one(PreviewPane).show(found)
        self.query_one(ProblemPane).show(found, self._lesson())
        shown = found.command.shown() if found.command is not None else shown_command(draft)
        self.query_one("#command", Static).update(f"$ {shown}")
        self._hint_problem(found)

    def _lesson(self) -> tuple[str, ...]:
        entry = self.query_one(CataloguePane).entry
        return (entry.note,) if entry is not None and entry.note else ()

    def _title(self, draft: Draft) -> None:
        changed = "  changed" if draft.changed else ""
        how = "YAML" if self.has_class("-yaml") else "form"
        self.query_one("#title", Static).update(f"{draft.path or draft.name}  {how}{changed}")

    def _hint_problem(self, found: Assessment) -> None:
        bar = self.query_one(PromptBar)
        if bar.asking and bar.purpose in (_EDIT, _SETTING):
            if found.errors:
                bar.hint(f"✗ {found.errors[0].message}  {found.errors[0].help}", wrong=True)
            elif found.estimate is not None:
                guess = found.estimate
                bar.hint(f"✓ {guess.output_throughput:,.0f} tok/s  TTFT {guess.ttft_ms:,.1f} ms  "
                         f"TPOT {guess.tpot_ms:,.2f} ms  {guess.state}")  # fmt: skip

    def _hint_row(self) -> None:
        pane = self.query_one(FormPane)
        row = pane.row if pane.has_focus else None
        if row is not None and self._found is not None and self._found.ready:
            self.query_one(ProblemPane).show(self._found, (f"{row.label}: {row.help}",))

    def on_form_pane_edit(self, event: FormPane.Edit) -> None:
        """Ask for the value of a row."""
        row = event.row
        if row.section == RUN_SECTION or self._draft is None:
            self.query_one(FormPane).action_turn(1)
            return
        self._row, self._before = row, self._draft
        self.query_one(PromptBar).ask(_EDIT, f"{row.key} =", row.value, row.help)

    def on_form_pane_set(self, event: FormPane.Set) -> None:
        """A row has another value."""
        draft, row, value = self._draft, event.row, event.value
        if draft is None:
            return
        if row.section != RUN_SECTION:
            self._change(draft.with_setting(row.key, value))
        elif row.key == "detail":
            self._change(replace(draft, detail=detail_named(value or "")))
        elif row.key == "executor":
            self._change(replace(draft, executor=executor_named(value or "")))
        else:
            self._change(replace(draft, dummy_weights=value != "auto"))

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        """The text is another."""
        if self._draft is not None:
            self._change(self._draft.with_text(event.text_area.text))

    # The line at the bottom

    def on_prompt_bar_changed(self, event: PromptBar.Changed) -> None:
        """Each key counts."""
        if event.purpose == _FILTER:
            self.query_one(CataloguePane).set_filter(event.value)
        elif event.purpose == _EDIT and self._before is not None and self._row is not None:
            value = event.value.strip() or "null"
            self._change(self._before.with_setting(self._row.key, value))
        elif event.purpose == _SETTING and self._before is not None:
            key, equals, value = event.value.partition("=")
            if equals:
                self._change(self._before.with_setting(key.strip(), value))

    def on_prompt_bar_submitted(self, event: PromptBar.Submitted) -> None:
        """Keep what was typed."""
        if event.purpose == _SAVE:
            self._save_as(Path(event.value).expanduser())
        self._focus_main(event.purpose)

    def on_prompt_bar_cancelled(self, event: PromptBar.Cancelled) -> None:
        """Take back what was typed."""
        if event.purpose == _FILTER:
            self.query_one(CataloguePane).set_filter("")
        elif event.purpose in (_EDIT, _SETTING) and self._before is not None:
            self._change(self._before)
        self._focus_main(event.purpose)

    def _focus_main(self, purpose: str) -> None:
        pane: ListPane = self.query_one(FormPane)
        if purpose != _EDIT or self.has_class("-run"):
            pane = self.query_one(CataloguePane)
        pane.focus()

    # Keys

    def action_open(self) -> None:
        """Run the scenario, or open the recorded run."""
        entry = self.query_one(CataloguePane).entry
        if entry is not None and entry.path is not None and entry.kind == "run":
            self.shell.open_recorded(entry.path)
        elif self._draft is not None:
            self.action_run(self._draft.executor)

    def action_run(self, executor: Executor) -> None:
        """Run the draft."""
        command = self._command_of(executor)
        if command is not None:
            self.shell.start_run(command)

    def action_both(self) -> None:
        """Simulate and serve, then compare."""
        simulated, served = self._command_of("simulate"), self._command_of("run")
        if simulated is not None and served is not None:
            self.shell.start_run(simulated, lambda a: self._serve_beside(a, served))

    def _serve_beside(self, a: OpenedRun, served: RunCommand) -> None:
        self.shell.show_run(a)
        self.shell.start_run(served, lambda b: self.shell.compare_runs(a, b))

    def _command_of(self, executor: Executor) -> RunCommand | None:
        if self._draft is None:
            self.notify("choose a scenario first", severity="warning")
            return None
        found = assess(replace(self._draft, executor=executor))
        if found.command is None:
            problem = found.errors[0].message if found.errors else found.trouble
            self.notify(f"it cannot run yet: {problem}", severity="error")
        return found.command

    def action_toggle_editor(self) -> None:
        """YAML or form."""
        if not self.has_class("-run"):
            self._show_editor(not self.has_class("-yaml"))
            self.add_class("-inside")
            pane = self.query_one(TextArea if self.has_class("-yaml") else FormPane)
            pane.focus()

    def _show_editor(self, yaml: bool) -> None:
        self.set_class(yaml, "-yaml")
        self._saved.editor = yaml
        if self._draft is not None:
            self._title(self._draft)

    def action_external_editor(self) -> None:
        """Edit the text in $EDITOR."""
        from workbench.tui.scenarios.external_editor import edited

        if self._draft is None:
            return
        text = edited(self.app, self._draft.text)
        if text is None:
            self.notify("set EDITOR to the editor that you like", severity="warning")
        elif text != self._draft.text:
            self.query_one(TextArea).load_text(text)

    def action_ask_setting(self) -> None:
        """Ask for KEY=VALUE."""
        if self._draft is not None:
            self._before = self._draft
            self.query_one(PromptBar).ask(_SETTING, "--set", "", "KEY=VALUE: load.request_rate=30")

    def action_undo(self) -> None:
        """As the file is."""
        if self._draft is not None:
            self._draft = self._draft.unchanged()
            self.query_one(TextArea).load_text(self._draft.text)
            self._assess()

    def action_save(self) -> None:
        """Ask for a file."""
        if self._draft is not None:
            name = str(self._draft.path or f"{self._draft.name}.yaml")
            self.query_one(PromptBar).ask(_SAVE, "save as", name, "the form's changes go into it")

    def _save_as(self, path: Path) -> None:
        from workbench.tui.scenarios.saving import save_draft

        if self._draft is None:
            return
        trouble = save_draft(self._draft, path)
        if trouble is not None:
            self.notify(trouble, severity="error")
            return
        self.notify(f"saved {path}")
        self._saved.scenario = str(path)
        self._look(first=True)

    def action_mark(self) -> None:
        """Mark a run, or compare it with the marked one."""
        pane = self.query_one(CataloguePane)
        entry = pane.entry
        if entry is None or entry.path is None or entry.kind != "run":
            self.notify("compare takes recorded runs: move to one and press c", severity="warning")
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

    def on_problem_pane_jump(self, event: ProblemPane.Jump) -> None:
        """Go to a problem's line in the text."""
        if event.error.line is not None:
            self._show_editor(True)
            self.add_class("-inside")
            editor = self.query_one(TextArea)
            editor.move_cursor((event.error.line - 1, (event.error.column or 1) - 1), center=True)
            editor.focus()

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
        return self._resolved

    def command_line(self) -> str | None:
        """What the line with $ shows."""
        text = str(self.query_one("#command", Static).content)
        return text.removeprefix("$ ") or None


def _wrong_keys(found: Assessment) -> frozenset[str]:
    """Keys of the form that errors point at: those whose settings, or lines, are wrong."""
    keys = set()
    for error in found.errors:
        if error.span is not None and error.span.source.is_override:
            keys.add(error.span.source.text.partition("=")[0])
    return frozenset(keys)
