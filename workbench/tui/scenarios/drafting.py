"""A scenario being changed on screen: by form, by YAML, by KEY=VALUE; checked at each key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.widgets import Static, TextArea

from workbench.tui.child_run import RunCommand
from workbench.tui.prompt_bar import PromptBar
from workbench.tui.saved_state import SavedState
from workbench.tui.scenarios.catalogue import Entry
from workbench.tui.scenarios.catalogue_pane import CataloguePane
from workbench.tui.scenarios.draft import (
    RUN_SECTION,
    Assessment,
    Draft,
    Executor,
    assess,
    command_by,
    detail_named,
    executor_named,
    shown_command,
)
from workbench.tui.scenarios.form_pane import FormPane
from workbench.tui.scenarios.preview_pane import PreviewPane
from workbench.tui.scenarios.problem_pane import ProblemPane
from workbench.tui.workbench_screen import WorkbenchScreen

if TYPE_CHECKING:
    from workbench.tui.scenarios.form_rows import FormRow

_EDIT, _SETTING, _SAVE = "edit", "setting", "save"  # what is asked for in the line at the bottom


class Drafting(WorkbenchScreen):
    """The part of the screen of scenarios that has a draft; the panes are the screen's.

    Args:
        saved: where executor, detail and the like are remembered.
    """

    def __init__(self, saved: SavedState) -> None:
        super().__init__()
        self.saved = saved
        self._draft: Draft | None = None
        self._found: Assessment | None = None
        self._resolved: dict[str, Any] | None = None
        self._row: FormRow | None = None
        self._before: Draft | None = None
        self._assessing = False
        self._when_settled: Callable[[], None] | None = None

    def look_again(self) -> None:
        """List scenarios and runs anew."""
        raise NotImplementedError

    @property
    def draft(self) -> Draft | None:
        """What is being changed; None where a recorded run is selected."""
        return self._draft

    def forget_draft(self) -> None:
        """A recorded run is selected instead."""
        self._draft = None

    def resolved(self) -> dict[str, Any] | None:
        """The last readable state of the draft, resolved."""
        return self._resolved

    def draft_prompt_changed(self, purpose: str, text: str) -> None:
        """Each key of a value or a setting counts."""
        if self._before is None:
            return
        if purpose == _EDIT and self._row is not None:
            self.change_draft(self._before.with_setting(self._row.key, text.strip() or "null"))
        elif purpose == _SETTING:
            key, equals, value = text.partition("=")
            if equals:
                self.change_draft(self._before.with_setting(key.strip(), value))

    def draft_prompt_submitted(self, purpose: str, text: str) -> None:
        """Keep what was typed."""
        if purpose == _SAVE:
            self.save_as(Path(text).expanduser())
        self.draft_prompt_closed(purpose)

    def draft_prompt_cancelled(self, purpose: str) -> None:
        """Take back what was typed."""
        if purpose in (_EDIT, _SETTING) and self._before is not None:
            self.change_draft(self._before)
        self.draft_prompt_closed(purpose)

    def draft_prompt_closed(self, purpose: str) -> None:
        """Give the keys back to where they came from."""
        inside = purpose == _EDIT and not self.has_class("-run")
        self.query_one(FormPane if inside else CataloguePane).focus()

    def open_draft(self, entry: Entry) -> None:
        from workbench.scenario.errors import ScenarioErrors

        saved = self.saved
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

    def change_draft(self, draft: Draft) -> None:
        self._draft = draft
        self.saved.executor, self.saved.detail = draft.executor, draft.detail
        self._assess()

    def _assess(self) -> None:
        """Assess the draft in a thread; while one is at it, it waits, and only the last counts."""
        draft = self._draft
        if draft is None:
            return
        self._title(draft)
        if not self._assessing:
            self._assessing = True
            work = partial(self._assess_in_thread, draft)
            self.run_worker(work, thread=True, group="assess")

    def _assess_in_thread(self, draft: Draft) -> None:
        found = assess(draft)
        self.app.call_from_thread(self._assessed, found)

    def _assessed(self, found: Assessment) -> None:
        self._assessing = False
        draft = self._draft
        if draft is None:
            return
        if found.draft is not draft:
            self._assess()
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
        wish, self._when_settled = self._when_settled, None
        if wish is not None:
            wish()

    def _lesson(self) -> tuple[str, ...]:
        """The comment at the head of the scenario: what it shows, and what to try."""
        lines = self._draft.text.splitlines() if self._draft is not None else []
        comment = takewhile(lambda line: line.startswith("#"), lines)
        return tuple(line.removeprefix("#").removeprefix(" ") for line in comment)

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

    def hint_row(self) -> None:
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
            self.change_draft(draft.with_setting(row.key, value))
        elif row.key == "detail":
            self.change_draft(replace(draft, detail=detail_named(value or "")))
        elif row.key == "executor":
            self.change_draft(replace(draft, executor=executor_named(value or "")))
        else:
            self.change_draft(replace(draft, dummy_weights=value != "auto"))

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        """The text is another."""
        if self._draft is not None:
            self.change_draft(self._draft.with_text(event.text_area.text))

    def show_editor(self, yaml: bool) -> None:
        self.set_class(yaml, "-yaml")
        self.saved.editor = yaml
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

    def save_as(self, path: Path) -> None:
        from workbench.tui.scenarios.saving import save_draft

        if self._draft is None:
            return
        trouble = save_draft(self._draft, path)
        if trouble is not None:
            self.notify(trouble, severity="error")
            return
        self.notify(f"saved {path}")
        self.saved.scenario = str(path)
        self.look_again()

    def on_problem_pane_jump(self, event: ProblemPane.Jump) -> None:
        """Go to a problem's line in the text."""
        if event.error.line is not None:
            self.show_editor(True)
            self.add_class("-inside")
            editor = self.query_one(TextArea)
            editor.move_cursor((event.error.line - 1, (event.error.column or 1) - 1), center=True)
            editor.focus()

    def once_settled(self, action: Callable[[], None]) -> None:
        """Do something as soon as what is selected has been worked out; the last wish counts."""
        if self.settled or self._draft is None:
            action()
        else:
            self._when_settled = action

    def command_of(self, executor: Executor) -> RunCommand | None:
        found = self._found
        if self._draft is None or found is None:
            self.notify("choose a scenario first", severity="warning")
        elif found.command is None:
            problem = found.errors[0].message if found.errors else found.trouble
            self.notify(f"it cannot run yet: {problem}", severity="error")
        else:
            return command_by(found, executor)
        return None

    @property
    def settled(self) -> bool:
        """Whether everything about what is selected has been worked out."""
        if self._draft is None:
            return self.query_one(CataloguePane).entry is not None
        return self._found is not None and self._found.draft is self._draft


def _wrong_keys(found: Assessment) -> frozenset[str]:
    """Keys of the form that errors point at: those whose settings, or lines, are wrong."""
    keys = set()
    for error in found.errors:
        if error.span is not None and error.span.source.is_override:
            keys.add(error.span.source.text.partition("=")[0])
    return frozenset(keys)
