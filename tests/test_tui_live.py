"""The live screen, key by key and click by click, on a real run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recorded_runs import record, simulation_of
from textual.pilot import Pilot
from tui_pilot import drive, shown, types, until

from engine.core.events import Segment
from workbench.record.stream import HeaderFrame
from workbench.tui.app import WorkbenchApp
from workbench.tui.chart_pane import ChartPane
from workbench.tui.frame_rate import FrameRate
from workbench.tui.live.event_log import EventPane
from workbench.tui.live.pages import PagesPane
from workbench.tui.live.radix import RadixPane
from workbench.tui.live.screen import LiveScreen
from workbench.tui.live.state import PAGE_MODES
from workbench.tui.live.strip import StripPane
from workbench.tui.opened_run import OpenedRun
from workbench.tui.store import Player, RunStore
from workbench.tui.store.page_log import CACHE

SIZES = [(80, 24), (120, 36), (200, 60), (40, 12), (300, 80)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> OpenedRun:
    """A recorded run with all details, some way in."""
    opened = OpenedRun.recorded(record(simulation_of("conversation", "one", "pages"), folder).path)
    opened.player.seek(150)
    return opened


def live(app: WorkbenchApp) -> LiveScreen:
    screen = app.screen
    assert isinstance(screen, LiveScreen)
    return screen


def text_of(pane: ChartPane) -> str:
    """What a pane shows."""
    return "\n".join(pane.render_line(y).text for y in range(pane.size.height))


def glyphs(app: WorkbenchApp) -> str:
    return "\n".join(text_of(pane) for pane in live(app).query(ChartPane) if pane.display)


def test_keys_move_through_the_run_and_time_flows_at_the_speed(run: OpenedRun) -> None:
    """Step, back, zoom, speed, marks, ends and time all do what their names say."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        player = run.player
        await pilot.press(".", ".", "comma")
        assert player.position == 151
        await pilot.press("right_square_bracket", "right_square_bracket", "full_stop")
        assert (player.zoom, player.position) == (2, 155)
        await pilot.press("left_square_bracket", "plus", "m", "home", "apostrophe")
        assert (player.zoom, player.speed, player.position) == (1, 2.0, 155)
        await pilot.press("end")
        assert player.following
        assert player.position == player.head
        player.speed = 0.1  # the run must not end before the next key, however busy the machine is
        await pilot.press("home", "space")
        await until(pilot, lambda: player.position > 0)
        await pilot.press("space")
        await until(pilot, lambda: not player.playing)
        here = player.position
        await pilot.pause(0.1)
        assert player.position == here
        player.seek(300)
        await pilot.press("t")
        await until(pilot, lambda: "ms a column" in text_of(live(app).query_one(StripPane)))

    drive(journey, start=run)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_drawn_and_none_refused(run: OpenedRun, size: tuple[int, int]) -> None:
    """From a corner of a screen to a wall, with and without a chosen request."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        for key in ("n", "k", "k", "k", "f", "t", "r", "v", "z", "z", "escape"):
            await pilot.press(key)
            await pilot.pause()
        assert f"step {run.player.position}" in glyphs(app)

    drive(journey, size, start=run)


def test_a_chosen_request_is_lit_in_every_chart(run: OpenedRun) -> None:
    """n chooses a holder of pages; its pages, its node path and its steps are in its colour."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        screen = live(app)
        before = {pane.id: shades(pane) for pane in screen.query(ChartPane)}
        await pilot.press("n")
        await until(pilot, lambda: run.player.selected_request is not None)
        await pilot.pause(0.1)
        chosen = run.player.selected_request
        assert chosen is not None
        pages, _ = screen.state.memory()
        assert (pages.owner == chosen).any()
        lit = screen.state.chosen_pages()
        assert lit is not None
        assert (pages.owner[lit.pages] != -2).all()
        changed = {p.id for p in screen.query(ChartPane) if shades(p) != before[p.id]}
        assert {"pages", "strip"} <= changed
        await pilot.press("escape")
        await pilot.pause(0.1)
        assert run.player.selected_request is None
        again = {pane.id: shades(pane) for pane in screen.query(ChartPane)}
        assert again["pages"] == before["pages"]

    drive(journey, start=run)


def shades(pane: ChartPane) -> list[object]:
    """Text and colours of a pane."""
    return [
        (
            segment.text,
            segment.style and segment.style.color,
            segment.style and segment.style.bgcolor,
        )
        for y in range(pane.size.height)
        for segment in pane.render_line(y)
    ]


def test_clicks_choose_what_is_under_the_mouse(run: OpenedRun) -> None:
    """Clicks on the strip go to a step, on pages and nodes to a request, on events to both."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        screen = live(app)
        await pilot.click(StripPane, offset=(60, 3))
        expected = 150 - (screen.query_one(StripPane).size.width - 1 - 60)
        assert run.player.position == expected
        pages, tree = screen.state.memory()
        map_pane = screen.query_one(PagesPane)
        used = int(np.flatnonzero(pages.owner >= 0)[0])
        assert "6 px each" in text_of(map_pane)
        per_row = map_pane.size.width // 6
        upper = used - used // per_row % 2 * per_row  # a click means the upper of two pixels
        await pilot.click(PagesPane, offset=(used % per_row * 6 + 2, 1 + used // per_row // 2))
        expected = pages.owner[upper] if pages.owner[upper] >= 0 else pages.writer[upper]
        assert run.player.selected_request == (expected if expected >= 0 else None)
        await pilot.press("escape")
        assert len(tree) > 1
        await pilot.click(RadixPane, offset=(2, 2))
        writers = pages.writer[pages.owner == CACHE].tolist()
        assert run.player.selected_request in writers
        await pilot.press("f")
        await pilot.pause(0.2)
        log = screen.query_one(EventPane)
        log.focus()
        await pilot.press("up", "up")
        happening = log.chosen
        assert happening is not None
        await pilot.press("enter")
        await pilot.pause()
        assert run.player.position == happening.position

    drive(journey, start=run)


def test_the_page_map_has_four_modes_and_each_says_what_its_colours_mean(run: OpenedRun) -> None:
    """k goes around; a page under the mouse is told in words."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        pane = live(app).query_one(PagesPane)
        for mode in (*PAGE_MODES[1:], PAGE_MODES[0]):
            await pilot.press("k")
            await until(pilot, lambda mode=mode: text_of(pane).startswith(f"KV {mode} "))
        await pilot.hover(PagesPane, offset=(0, 1))
        await until(pilot, lambda: "page 0:" in text_of(pane))

    drive(journey, start=run)


@pytest.mark.parametrize(
    ("detail", "words"),
    [
        ("none", ["--detail steps fills this pane"]),
        ("steps", ["--detail pages fills this pane and the prefix cache"]),
    ],
)
def test_an_empty_pane_says_what_fills_it(detail, words, folder: Path) -> None:
    """A record of too little detail names the level that would do."""
    run = OpenedRun.recorded(record(simulation_of("synthetic", "one", detail), folder).path)

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        await pilot.press("end", "space", "n", "k", "comma")
        shown_text = glyphs(app)
        for sentence in words:
            assert sentence in shown_text

    drive(journey, start=run)


def test_a_growing_run_is_drawn_as_it_grows() -> None:
    """While rows come, the header counts steps behind, the map catches up, and end follows."""
    simulation = simulation_of("synthetic", "one", "pages")
    segments: list[Segment] = []
    simulation.run([segments.append], live=True)
    store = RunStore(simulation.header)
    run = OpenedRun(store, Player(store))

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        assert "waiting for the first step" in glyphs(app)
        for segment in segments:
            store.take(segment)
        await until(pilot, lambda: "steps, end = live" in glyphs(app))
        await pilot.press("end")
        await until(pilot, lambda: "● live" in glyphs(app) and not run.player.log.kv.backlog)
        store.take(HeaderFrame(store.header))
        store.end("complete", {})
        await until(pilot, lambda: "● end" in glyphs(app))

    drive(journey, start=run)


def test_nothing_is_drawn_while_nothing_changes(run: OpenedRun) -> None:
    """A paused screen paints no pane; a step paints some."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        await pilot.pause(0.3)
        screen = live(app)
        painted: list[str] = []
        for pane in screen.query(ChartPane):
            draw, name = pane.draw, pane.id or ""
            pane.draw = lambda c, p, draw=draw, name=name: (painted.append(name), draw(c, p))[1]
        frames = screen.frames
        await until(pilot, lambda: screen.frames > frames + 5)
        assert painted == []
        await pilot.press("full_stop")
        await pilot.pause(0.1)
        assert {"header", "strip", "scrubber"} <= set(painted)

    drive(journey, start=run)


def test_going_to_a_request_lights_it_up_where_it_runs(run: OpenedRun) -> None:
    """`:r7` on the live screen goes to a step of that request, and `y` copies it."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        await types(pilot, ":r7")
        await pilot.press("enter")
        await until(pilot, lambda: run.player.selected_request == 7)
        steps = live(app).state.chosen_steps()
        assert steps is not None
        last = max((end for _, end in steps.decode), default=int(steps.prefill[-1]))
        assert steps.prefill[0] <= run.player.position <= last
        selection = live(app).selection()
        assert selection is not None
        assert selection["request"]["request_id"] == 7
        command = live(app).command_line()
        assert command is not None
        assert command.endswith("--request 7")

    drive(journey, start=run)


def test_the_frame_rate_goes_down_under_load_and_up_again() -> None:
    """Busy or late frames halve the rate, calm ones bring it back; a slow link never has all."""
    rate, now = FrameRate(30), 0.0
    for _ in range(60):
        now += 1 / 30
        rate.due(now, 0.05)
    assert rate.fps < 30
    for _ in range(400):
        now += 1 / 30
        rate.due(now, 0.001)
    assert rate.fps == 30
    for _ in range(60):
        now += 0.2
        rate.due(now, 0.001)
    assert rate.fps < 30
    assert FrameRate(30, slow_link=True).fps == 15


@pytest.mark.parametrize("size", [(20, 10), (20, 4), (10, 3), (3, 1)])
def test_the_smallest_terminals_break_nothing(run: OpenedRun, size: tuple[int, int]) -> None:
    """There is hardly anything to see, and the interface goes on."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        await shown(app, pilot, "live")
        await pilot.press("full_stop")
        await pilot.pause()
        assert run.player.position > 0

    drive(journey, size, start=run)
