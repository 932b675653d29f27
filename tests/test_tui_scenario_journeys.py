"""From the list of scenarios to runs that end, fail or are ended, key by key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from recorded_runs import recorded
from textual.pilot import Pilot
from textual.widgets import Static, TextArea
from tui_pilot import current, drive, listed, mode, shown, types, until

from workbench.record.run_record import RunReader
from workbench.scenario.source import shipped_text
from workbench.tui.app import WorkbenchApp
from workbench.tui.dialogs import FailureDialog
from workbench.tui.opened_run import OpenedRun
from workbench.tui.scenarios.catalogue_pane import CataloguePane
from workbench.tui.scenarios.form_pane import FormPane
from workbench.tui.scenarios.preview_pane import PreviewPane
from workbench.tui.text_pane import TextPane

pytestmark = pytest.mark.usefixtures("own_folder")


async def long_run(app: WorkbenchApp, pilot: Pilot[None]) -> OpenedRun:
    """Simulate far more requests than anybody waits for; the run, once it has steps."""
    await listed(app, pilot)
    await pilot.press("plus")
    await types(pilot, "workload.num_requests=60000")
    await pilot.press("enter")
    await listed(app, pilot)
    await pilot.press("s")
    await shown(app, pilot, "live")
    opened = app.current
    assert opened is not None
    await until(pilot, lambda: len(opened.player.steps) > 0)
    return opened


def test_what_a_filter_leaves_under_the_cursor_is_what_runs() -> None:
    """The form and the command follow the list, whichever row the filter took away."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        screen = await listed(app, pilot)
        await pilot.press("slash")
        await types(pilot, "engine_on_cpu")
        await pilot.press("enter")
        pane = screen.query_one(CataloguePane)
        assert pane.entry is not None
        assert pane.entry.name == "engine_on_cpu"
        await until(pilot, lambda: "engine_on_cpu" in (screen.command_line() or ""))
        await pilot.press("q")

    drive(journey)


def test_yaml_and_form_judge_at_each_key() -> None:
    """A mistake in the text stops the run and is named; the form's changes are in the command."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        screen = await listed(app, pilot)
        await pilot.press("e")
        editor = screen.query_one(TextArea)
        assert editor.has_focus
        editor.load_text(editor.text.replace("poisson", "poison"))
        await pilot.pause()
        await listed(app, pilot)
        assert screen._found is not None
        assert [error.line for error in screen._found.errors] == [15]
        await pilot.press("escape", "s")
        assert mode(app) == "scenarios"
        await pilot.press("u")
        await listed(app, pilot)
        assert screen._found.ready
        await pilot.press("e")
        form = screen.query_one(FormPane)
        form.focus()
        keys = [line.key for line in form._lines if not isinstance(line, str)]
        while form.row is None or form.row.key != "load.request_rate":
            await pilot.press("down")
        await pilot.press("enter", "backspace", "backspace")
        await types(pilot, "2")
        await listed(app, pilot)
        guess = screen._found.estimate
        assert guess is not None
        assert guess.offered_rate == pytest.approx(2, rel=0.1)
        await types(pilot, "00")
        await listed(app, pilot)
        assert screen._found.estimate is not None
        assert screen._found.estimate.state == "overloaded"
        await pilot.press("enter")
        assert "load.request_rate=200" in str(screen.command_line())
        while form.row.key != "scheduler.policy":
            await pilot.press("down")
        await pilot.press("right")
        await listed(app, pilot)
        assert "scheduler.policy=lpm" in str(screen.command_line())
        await pilot.press("backspace")
        await listed(app, pilot)
        assert "scheduler.policy" not in str(screen.command_line())
        assert len(keys) > 40
        assert screen.query_one(PreviewPane).display

    drive(journey)


def test_a_run_that_fails_shows_its_last_lines() -> None:
    """The dialog holds the message and what the process said; `y` copies it."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        from workbench.tui.child_run import RunCommand

        await listed(app, pilot)
        app.start_run(RunCommand(("simulate", "no_such_scenario")))
        await until(pilot, lambda: isinstance(app.screen, FailureDialog))
        await pilot.press("y")
        assert "no_such_scenario" in app.clipboard
        assert "exit code 2" in app.clipboard
        await pilot.press("escape")
        assert mode(app) == "scenarios"

    drive(journey)


def test_escape_ends_a_run_and_keeps_it() -> None:
    """The record of a run that was ended early is there, and says so."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        opened = await long_run(app, pilot)
        await pilot.press("escape")
        await until(pilot, lambda: not opened.running)
        assert opened.store.status == "interrupted"

    drive(journey)
    assert RunReader(Path("runs/quickstart-1")).status == "interrupted"


def test_quitting_ends_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is left behind, and the partial run is kept."""
    monkeypatch.setattr("workbench.tui.child_run._GRACE_S", 60)

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        opened = await long_run(app, pilot)
        await pilot.press("q")
        assert opened.child is not None
        assert not opened.child.running

    drive(journey)
    assert RunReader(Path("runs/quickstart-1")).status == "interrupted"


def test_two_recorded_runs_are_compared_from_the_list(run: OpenedRun) -> None:
    """`c` on one run and on another opens compare."""
    recorded("workload.num_requests=150", "load.warmup_requests=0", "load.request_rate=40")

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        screen = await listed(app, pilot)
        pane = screen.query_one(CataloguePane)
        await pilot.press("end", "c", "up", "c")
        assert pane.entry is not None
        await shown(app, pilot, "compare")
        assert app.compared is not None
        assert {run.label for run in app.compared} == {"run-1", "run-2"}
        await pilot.press("Y")
        assert app.clipboard.startswith("workbench compare ")

    drive(journey)


def test_a_run_waits_for_the_check() -> None:
    """`s` right behind a change runs what was typed, once it has been checked."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        screen = await listed(app, pilot)
        draft = screen.draft
        assert draft is not None
        screen.change_draft(draft.with_setting("workload.num_requests", "130"))
        screen.action_run("simulate")
        opened = await current(app, pilot)
        assert len(opened.store.requests) == 130

    drive(journey)


def test_both_are_compared() -> None:
    """`b` simulates, then serves on the engine, and shows the two side by side."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        screen = await listed(app, pilot)
        draft = screen.draft
        assert draft is not None
        screen.change_draft(draft.with_setting("workload.num_requests", "8"))
        await pilot.press("b")
        await shown(app, pilot, "compare")
        assert app.compared is not None
        kinds = [opened.store.header.kind for opened in app.compared]
        assert kinds == ["simulation", "engine"]
        await until(pilot, lambda: not app.compared[1].running)  # type: ignore[index]

    pytest.importorskip("triton")
    drive(journey, scenario="engine_on_cpu")


def test_a_scenario_of_another_folder_is_listed() -> None:
    """`workbench tui FILE` selects the file, wherever it is, and runs it by its path."""
    Path("deep").mkdir()
    text = shipped_text("quickstart").replace("num_requests: 2000", "num_requests: 140")
    Path("deep/mine.yaml").write_text(text)

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        screen = await listed(app, pilot)
        entry = screen.query_one(CataloguePane).entry
        assert entry is not None
        assert entry.name == "deep/mine.yaml"
        assert screen.command_line() == "workbench simulate deep/mine.yaml --detail pages"
        await pilot.press("s")
        assert len((await current(app, pilot)).store.requests) == 140

    drive(journey, scenario="deep/mine.yaml")


def test_a_changed_copy_of_a_shipped_scenario_is_listed_in_its_place() -> None:
    """It is selected where that would be, and marked; what it says is what runs."""
    Path("scenarios").mkdir()
    text = shipped_text("quickstart").replace("num_requests: 2000", "num_requests: 140")
    Path("scenarios/quickstart.yaml").write_text(text)
    Path("scenarios/moe.yaml").write_text(shipped_text("moe"))

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        screen = await listed(app, pilot)
        pane = screen.query_one(CataloguePane)
        assert pane.entry is not None
        assert pane.entry.name == "scenarios/quickstart.yaml"
        assert "not&#160;as&#160;shipped" in app.export_screenshot()
        titles = [entry.title for row in range(pane.count) if (entry := pane.at(row))]
        assert titles.count("moe") == titles.count("quickstart.yaml") == 1
        assert not {"moe.yaml", "quickstart"} & set(titles)

    drive(journey)


def test_a_run_that_cannot_be_read_is_listed_with_the_reason(run: OpenedRun) -> None:
    """A damaged header does not make a run vanish; opening it says the same."""
    (Path("runs") / "torn").mkdir()
    (Path("runs") / "torn" / "header.json").write_text('{"format": 1')
    os.utime("runs/torn/header.json", (1, 1))

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        screen = await listed(app, pilot)
        pane = screen.query_one(CataloguePane)
        await pilot.press("end")
        assert pane.entry is not None
        assert (pane.entry.name, pane.entry.unreadable) == ("runs/torn", True)
        assert "runs/torn/header.json" in pane.entry.note
        assert "torn  cannot be read" in str(screen.query_one("#title", Static).content)
        assert screen.query_one("#facts", TextPane).count > 0
        await pilot.press("c")
        assert [notice.message for notice in app._notifications] == ["torn cannot be read"]
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, FailureDialog))

    drive(journey)
