"""The main journeys through the interface, key by key, on real runs of shipped scenarios."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recorded_runs import recorded
from textual.pilot import Pilot
from textual.widgets import Input, TextArea
from tui_pilot import current, drive, listed, mode, shown, types, until

from workbench.run_record import RunReader
from workbench.scenario_source import shipped_text
from workbench.tui.app import WorkbenchApp
from workbench.tui.dialogs import FailureDialog, HelpDialog
from workbench.tui.live.screen import LiveScreen
from workbench.tui.mode_tabs import MODES, ModeTabs
from workbench.tui.opened_run import OpenedRun
from workbench.tui.requests.list import RequestList
from workbench.tui.requests.screen import RequestsScreen
from workbench.tui.scenarios.catalogue_pane import CataloguePane
from workbench.tui.scenarios.form_pane import FormPane
from workbench.tui.scenarios.preview_pane import PreviewPane


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each journey starts in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> OpenedRun:
    """A recorded run with all details."""
    del folder
    reader = recorded("workload.num_requests=150", "load.warmup_requests=0", detail="pages")
    return OpenedRun.recorded(reader.path)


def test_browse_run_pause_step_back_fork_compare_quit() -> None:
    """From the list of scenarios to the comparison of a run with its fork, and out."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        screen = await listed(app, pilot)
        await pilot.press("slash")
        await types(pilot, "chat load")
        await pilot.press("enter")
        entry = screen.query_one(CataloguePane).entry
        assert entry is not None
        assert entry.name == "quickstart"
        await pilot.press("plus")
        await types(pilot, "workload.num_requests=150")
        await pilot.press("enter")
        await listed(app, pilot)
        assert screen.command_line() == (
            "workbench simulate quickstart --set workload.num_requests=150 --detail pages"
        )
        await pilot.press("s")
        await shown(app, pilot, "live")
        opened = await current(app, pilot)
        player = opened.player
        assert player.playing
        await pilot.press("space")
        assert not player.playing
        await types(pilot, ":step 300")
        await pilot.press("enter")
        await until(pilot, lambda: player.position == 300)
        await pilot.press("comma", "comma", "full_stop")
        assert player.position == 299
        await pilot.press("F")
        await until(pilot, lambda: mode(app) is None)
        field = app.screen.query_one(Input)
        assert field.value == "fcfs"
        field.value = ""
        await types(pilot, "lpm")
        await pilot.press("enter")
        await shown(app, pilot, "compare")
        assert app.compared is not None
        fork = app.compared[1]
        await until(pilot, lambda: not fork.running)
        assert fork.store.header.forks[-1].step == 299
        await pilot.press("q")

    app = drive(journey)
    assert app.return_code == 0
    assert {path.name for path in Path("runs").iterdir()} == {"quickstart-1", "quickstart-2"}
    assert json.loads(Path("state.json").read_text())["scenario"] == "quickstart"


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


def test_an_empty_value_forks_nothing(run: OpenedRun) -> None:
    """The dialog says what to type instead."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        await types(pilot, ":step 20")
        await pilot.press("enter")
        await until(pilot, lambda: run.player.position == 20)
        await pilot.press("F")
        await until(pilot, lambda: mode(app) is None)
        app.screen.query_one(Input).value = " "
        await pilot.press("enter")
        await pilot.pause()
        assert mode(app) is None
        await pilot.press("escape")
        await pilot.press("q")

    drive(journey, start=run)
    assert not Path("runs/run-2").exists()


def test_a_recorded_run_opens_and_requests_lead_to_their_steps(run: OpenedRun) -> None:
    """Filter requests, look into one, follow the cause to its step on the live screen."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        await pilot.press("4")
        await shown(app, pilot, "requests")
        screen = app.screen
        assert isinstance(screen, RequestsScreen)
        pane = screen.query_one(RequestList)
        await until(pilot, lambda: pane.count == 150)
        await pilot.press("slash")
        await types(pilot, "ttft>30 & hit=0")
        await pilot.press("enter")
        assert 0 < pane.count < 150
        await pilot.press("w")
        request_id = pane.request_id
        assert request_id is not None
        assert run.player.selected_request == request_id
        ttft = run.store.requests.column("first_token_ns") - run.store.requests.column("arrival_ns")
        assert ttft[request_id] == ttft.max()
        found = None

        def explained() -> bool:
            nonlocal found
            found = screen.selection()
            return found is not None and "ttft" in found

        await until(pilot, explained)
        assert found is not None
        assert sum(part["ns"] for part in found["ttft"]) == ttft[request_id]
        await pilot.press("y")
        assert json.loads(app.clipboard) == found
        await pilot.press("Y")
        assert app.clipboard == f"workbench explain runs/run-1 --request {request_id}"
        await pilot.press("enter")
        await until(pilot, lambda: screen.query_one("#breakdown").has_focus)
        await until(pilot, lambda: screen.query_one("#breakdown").count > 0)
        await pilot.press("enter")
        await shown(app, pilot, "live")
        steps = run.store.items_of_request(request_id)["step"]
        assert abs(run.player.position - int(steps[-1])) <= 3
        assert run.player.selected_request == request_id
        await pilot.press("4")
        await shown(app, pilot, "requests")
        await pilot.press("escape", "p")
        await shown(app, pilot, "live")
        pages = run.store.replicas[0].pages_after(run.player.position)
        assert (pages.owner == request_id).any()

    drive(journey, start=run)


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
        await pilot.press("escape")
        await until(pilot, lambda: not opened.running)
        assert opened.store.status == "interrupted"

    drive(journey)
    assert RunReader(Path("runs/quickstart-1")).status == "interrupted"


def test_quitting_ends_what_runs() -> None:
    """No process is left behind, and the partial run is kept."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
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


def test_help_on_every_screen_has_its_keys(run: OpenedRun) -> None:
    """`?` opens on each mode; each key has an id to remap it by."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        app.compared = (run, run)
        for number, name in enumerate(MODES, 1):
            await pilot.press(str(number))
            await shown(app, pilot, name)
            await pilot.pause(0.1)
            await pilot.press("question_mark")
            await until(pilot, lambda: isinstance(app.screen, HelpDialog))
            dialog = app.screen
            assert isinstance(dialog, HelpDialog)
            assert dialog._guide.how_to_read
            ids = [entry.key_id for entry in dialog._keys if entry.key_id]
            assert len(ids) == len(set(ids)) >= 8
            theirs = {entry.what for entry in dialog._keys if not entry.key_id}
            assert len(theirs) <= 6, "bindings of ours without an id"
            await pilot.press("escape")
            await until(pilot, lambda name=name: mode(app) == name)

    drive(journey, start=run)


def test_keys_can_be_remapped(run: OpenedRun) -> None:
    """A key of the saved state takes the place of the one that comes with the program."""
    Path("state.json").write_text('{"keys": {"app.mode.requests": "R"}}')

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        await pilot.press("4")
        assert mode(app) == "live"
        await pilot.press("R")
        await shown(app, pilot, "requests")

    drive(journey, start=run)


def test_the_mouse_does_what_keys_do(run: OpenedRun) -> None:
    """A click on a mode goes there, on a row selects it, on a heading sorts."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        x = next(start for start, _, name in app.screen.query_one(ModeTabs)._places
                 if name == "requests")  # fmt: skip
        await pilot.click(ModeTabs, offset=(x + 2, 0))
        await shown(app, pilot, "requests")
        pane = app.screen.query_one(RequestList)
        await until(pilot, lambda: pane.count == 150)
        await pilot.click(RequestList, offset=(5, 6))
        assert pane.cursor == 4
        await pilot.click(RequestList, offset=(11, 1))
        await until(pilot, lambda: pane.order.name == "prompt")

    drive(journey, start=run)


def test_how_it_was_left_is_remembered(run: OpenedRun) -> None:
    """Theme, zoom, colours of the page map and order of the requests are those of last time."""

    async def change(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        await pilot.press("ctrl+t", "right_square_bracket", "right_square_bracket", "k", "4")
        await shown(app, pilot, "requests")
        await pilot.press("o", "q")

    async def look(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        assert isinstance(app.screen, LiveScreen)
        assert app.screen.state.page_mode == "owner"
        assert app.screen.player.zoom == 2
        await pilot.press("4")
        await shown(app, pilot, "requests")
        assert str(app.screen.query_one(RequestList).order) == "-ttft"

    assert drive(change, start=run).theme == "workbench-paper"
    again = OpenedRun.recorded(run.store.path or Path())
    assert drive(look, start=again).theme == "workbench-paper"


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (100, 30), (120, 36), (200, 60)])
def test_no_size_is_refused(run: OpenedRun, size: tuple[int, int]) -> None:
    """All modes show at every size, also when the terminal is resized."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        app.compared = (run, run)
        for number, name in enumerate(MODES, 1):
            await pilot.press(str(number))
            await shown(app, pilot, name)
            await pilot.resize_terminal(size[0] + 7, size[1] + 3)
            await pilot.pause(0.05)
            await pilot.resize_terminal(*size)
            await pilot.pause(0.05)

    drive(journey, size, start=run)


def test_every_theme_draws_every_mode(run: OpenedRun) -> None:
    """Themes of Textual's own, light, dark and of the terminal's colours, have what charts need."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        app.compared = (run, run)
        for number, name in enumerate(MODES, 1):
            await pilot.press(str(number))
            await shown(app, pilot, name)
            for theme in ("textual-light", "ansi-dark", "nord", "workbench-paper"):
                app.theme = theme
                await pilot.pause(0.02)

    drive(journey, start=run)


def test_the_palette_runs_the_actions_of_a_screen(run: OpenedRun) -> None:
    """What a key does is in the command palette, too."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        commands = {command.title: command for command in app.get_system_commands(app.screen)}
        assert "Go to Requests" in commands
        await pilot.press("ctrl+p")
        await types(pilot, "go to requests")
        await pilot.pause(0.5)
        await pilot.press("enter")
        await shown(app, pilot, "requests")

    drive(journey, start=run)


def test_nothing_to_show_is_said() -> None:
    """Modes that need a run say what is missing and stay where they are."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await listed(app, pilot)
        for key in "2345":
            await pilot.press(key)
            assert mode(app) == "scenarios"
        assert len(app._notifications) == 4

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
