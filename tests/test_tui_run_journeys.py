"""Through a run and back: steps, forks, requests and their steps, key by key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static
from tui_pilot import current, drive, listed, mode, shown, types, until

from workbench.tui.app import WorkbenchApp
from workbench.tui.opened_run import OpenedRun
from workbench.tui.requests.list import RequestList
from workbench.tui.requests.screen import RequestsScreen
from workbench.tui.scenarios.catalogue_pane import CataloguePane

pytestmark = pytest.mark.usefixtures("own_folder")


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
        player.speed = 0.1  # or a slow machine comes to its end
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


def test_a_replica_that_is_not_there_is_not_gone_to(run: OpenedRun) -> None:
    """`:9:9` of a run with one replica says so, and nothing moves."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        run.player.seek(30)
        await pilot.press("4")
        await shown(app, pilot, "requests")
        await types(pilot, ":9:9")
        await pilot.press("enter")
        await shown(app, pilot, "requests")
        (notice,) = app._notifications
        assert notice.message == "there is no replica 9; the last one is 0"
        assert (run.player.replica, run.player.position) == (0, 30)

    drive(journey, start=run)


def test_what_is_no_filter_leaves_the_one_that_was_entered(run: OpenedRun) -> None:
    """Not the longest beginning of it that happens to be one; and the list says which it is."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        await pilot.press("4")
        await shown(app, pilot, "requests")
        pane, hint = app.screen.query_one(RequestList), app.screen.query_one(".hint", Static)
        await until(pilot, lambda: pane.count == 150)
        await pilot.press("slash")
        await types(pilot, "hit=0")
        await pilot.press("enter")
        kept = pane.count
        await pilot.press("slash", *["backspace"] * 5)
        await types(pilot, "ttft>99999")
        await until(pilot, lambda: pane.count == 0)
        await types(pilot, "&foo")
        await until(pilot, lambda: pane.count == kept)
        assert pane.filter_text == "hit=0"
        assert str(hint.content).endswith("; still listed: hit=0")
        await pilot.press("enter")
        assert (pane.count, pane.filter_text) == (kept, "hit=0")
        (notice,) = app._notifications
        assert notice.message.startswith("no filter: at 12: ")
        await pilot.press("escape")
        assert pane.count == 150
        await pilot.press("slash")
        await types(pilot, "foo>")
        await pilot.pause()
        assert str(hint.content).endswith("; all are listed")

    drive(journey, start=run)


def test_a_long_message_of_a_prompt_is_not_cut(run: OpenedRun) -> None:
    """It takes as many lines as it needs, at the bottom of the screen."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        await types(pilot, ":somewhere")
        await pilot.pause()
        hint = app.screen.query_one(".hint", Static)
        assert hint.size.width * hint.size.height >= len(str(hint.content)) > hint.size.width
        assert hint.region.bottom <= app.size.height
        await pilot.press("escape", "4")
        await shown(app, pilot, "requests")
        await pilot.press("slash")
        await types(pilot, "&")
        await pilot.pause()
        hint = app.screen.query_one(".hint", Static)
        assert hint.size.width * hint.size.height >= len(str(hint.content)) > hint.size.width
        assert hint.region.bottom <= app.size.height

    drive(journey, (80, 24), start=run)
