"""What works on every screen: help, keys, mouse, sizes, themes, what is remembered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Footer
from tui_pilot import drive, listed, mode, shown, types, until

from workbench.tui.app import WorkbenchApp
from workbench.tui.dialogs import HelpDialog
from workbench.tui.live.header import HeaderPane
from workbench.tui.live.screen import LiveScreen
from workbench.tui.mode_tabs import MODES, ModeTabs
from workbench.tui.opened_run import OpenedRun
from workbench.tui.requests.list import RequestList

pytestmark = pytest.mark.usefixtures("own_folder")


async def each_mode(app: WorkbenchApp, pilot: Pilot[None], run: OpenedRun) -> AsyncIterator[str]:
    """Go through the modes; the name of each once it is shown."""
    await shown(app, pilot, "live")
    app.compared = (run, run)
    for number, name in enumerate(MODES, 1):
        await pilot.press(str(number))
        await shown(app, pilot, name)
        yield name


def test_help_on_every_screen_has_its_keys(run: OpenedRun) -> None:
    """`?` opens on each mode; each key has an id to remap it by."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        async for name in each_mode(app, pilot, run):
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
        async for _ in each_mode(app, pilot, run):
            await pilot.resize_terminal(size[0] + 7, size[1] + 3)
            await pilot.pause(0.05)
            await pilot.resize_terminal(*size)
            await pilot.pause(0.05)

    drive(journey, size, start=run)


def test_every_theme_draws_every_mode(run: OpenedRun) -> None:
    """Themes of Textual's own, light, dark and of the terminal's colours, have what charts need."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        async for _ in each_mode(app, pilot, run):
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


def test_on_the_lowest_terminal_charts_go_before_the_lines_that_say_where_one_is(
    run: OpenedRun,
) -> None:
    """At 40x10 no screen scrolls: the first line is in sight, and so is the last."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        async for name in each_mode(app, pilot, run):
            await pilot.pause(0.1)
            screen = app.screen
            assert screen.max_scroll_y == 0, name
            assert screen.scroll_y == 0, name
            assert any(pane.region.y == 0 for pane in screen.children if pane.display), name
            assert screen.query_one(Footer).region.bottom == 10, name
        await pilot.press("2")
        await shown(app, pilot, "live")
        assert app.screen.query_one(HeaderPane).region.y == 0

    drive(journey, (40, 10), start=run)
