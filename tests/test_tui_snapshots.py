"""Pictures of every screen, in colour, without, and in ASCII, at two sizes: they do not change.

The pictures are the SVG files in `tests/snapshots`, made of real runs of shipped scenarios. After a
change that is meant, make them anew and look at them before committing:

    WORKBENCH_UPDATE_SNAPSHOTS=1 python -m pytest tests/test_tui_snapshots.py
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gap_stories import left_here
from recorded_runs import forked, recorded
from textual.pilot import Pilot
from textual.widgets import Input
from tui_pilot import drive, listed, shown, types, until

from workbench.tui.app import WorkbenchApp
from workbench.tui.chart_screen import ChartScreen
from workbench.tui.compare.screen import CompareScreen
from workbench.tui.dialogs import HelpDialog
from workbench.tui.opened_run import OpenedRun
from workbench.tui.requests.list import RequestList
from workbench.tui.scenarios.catalogue_pane import CataloguePane
from workbench.tui.text_pane import TextPane

SNAPSHOTS = Path(__file__).with_name("snapshots")
UPDATE = os.environ.get("WORKBENCH_UPDATE_SNAPSHOTS") == "1"
SIZES = {"120x36": (120, 36), "80x24": (80, 24)}
LOOKS = ("colour", "no_color", "ascii")
CHAT = (
    "workload.num_conversations=60", "workload.think_time_s=2", "load.request_rate=8",
    "deployment.pools.0.num_pages=2400",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run and its fork, recorded two days ago and one day ago."""
    folder = tmp_path_factory.mktemp("snapshots")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = recorded(*CHAT, name="prefix_cache_chat", detail="pages")
        fork = forked(run, 2500, "scheduler.max_prefill_tokens=128")
        left_here(tmp_path_factory.mktemp("phases"))
        now = time.time()
        for reader, days in ((run, 2), (fork, 1)):
            written = now - 86_400 * days - 60
            os.utime(reader.path / "header.json", (written, written))
        yield folder


class Album:
    """Holds each picture against its file, or writes the file."""

    def __init__(self, app: WorkbenchApp, look: str, size: str) -> None:
        self._app = app
        self._suffix = f"{look}_{size}.svg"
        self.different: list[str] = []

    def look_at(self, name: str) -> None:
        """Compare what is shown with the file of that name."""
        screen = self._app.screen
        if isinstance(screen, ChartScreen):
            screen.draw_panes()
        picture = self._app.export_screenshot(title=name)
        path = SNAPSHOTS / f"{name}_{self._suffix}"
        if UPDATE:
            SNAPSHOTS.mkdir(exist_ok=True)
            path.write_text(picture, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != picture:
            Path(path.name).write_text(picture, encoding="utf-8")
            self.different.append(f"{path.name}: now {Path(path.name).absolute()}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("look", LOOKS)
def test_screens_look_as_they_did(
    folder: Path, monkeypatch: pytest.MonkeyPatch, look: str, size: str
) -> None:
    """All screens are the very pictures that were kept."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if look == "no_color":
        monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(Input, "_toggle_cursor", lambda field: None)  # what blinks is no picture
    run, fork = (OpenedRun.recorded(Path(f"runs/run-{i}")) for i in (1, 2))
    different: list[str] = []

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        album = Album(app, look, size)
        await shown(app, pilot, "live")
        await types(pilot, ":step 2600")
        await pilot.press("enter")
        await until(pilot, lambda: run.player.position == 2600)
        await pilot.pause(0.1)
        album.look_at("live")
        await pilot.press("n")
        await pilot.pause(0.1)
        album.look_at("live_request")
        await pilot.press("escape", "4")
        await shown(app, pilot, "requests")
        await until(pilot, lambda: app.screen.query_one(RequestList).count > 0)
        await pilot.press("w")
        await until(pilot, lambda: app.screen.query_one("#breakdown").count > 0)
        album.look_at("requests")
        await pilot.press("5")
        await shown(app, pilot, "why")
        await until(pilot, lambda: app.screen.query_one("#explanation", TextPane).count > 5)
        album.look_at("why")
        await pilot.press("6")
        await shown(app, pilot, "roofline")
        await pilot.pause(0.1)
        album.look_at("roofline")
        await pilot.press("7")
        await shown(app, pilot, "gaps")
        await pilot.pause(0.1)
        album.look_at("gaps")
        app.compare_runs(run, fork)
        await shown(app, pilot, "compare")
        screen = app.screen
        assert isinstance(screen, CompareScreen)
        await until(pilot, lambda: screen.state.comparison is not None)
        await pilot.pause(0.1)
        album.look_at("compare")
        await pilot.press("1")
        await shown(app, pilot, "scenarios")
        await listed(app, pilot)
        album.look_at("scenarios")
        await pilot.press("plus")
        await types(pilot, "load.request_rate=fast")
        await pilot.pause(0.1)
        await listed(app, pilot)
        album.look_at("scenarios_wrong")
        await pilot.press("escape")
        await listed(app, pilot)
        await until(pilot, lambda: app.screen.query_one(CataloguePane).has_focus)
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpDialog))
        await pilot.pause(0.3)
        album.look_at("help")
        different.extend(album.different)

    arguments = {"ascii_only": look == "ascii", "start": run, "state_file": Path("none.json")}
    Path("none.json").unlink(missing_ok=True)
    drive(journey, SIZES[size], **arguments)
    assert not different, "WORKBENCH_UPDATE_SNAPSHOTS=1 keeps them:\n" + "\n".join(different)


@pytest.mark.parametrize(
    "path", sorted(SNAPSHOTS.glob("*_ascii_*.svg")), ids=lambda path: path.stem
)
def test_ascii_pictures_are_ascii(path: Path) -> None:
    """Nothing outside of ASCII is left in them."""
    assert path.read_text(encoding="utf-8").replace("&#160;", " ").isascii()


@pytest.mark.parametrize(
    "path", sorted(SNAPSHOTS.glob("*_no_color_*.svg")), ids=lambda path: path.stem
)
def test_pictures_without_colour_are_grey(path: Path) -> None:
    """Every colour in them has equal parts of red, green and blue."""
    text = path.read_text(encoding="utf-8").partition("<style>")[2]
    body = "".join(line for line in text.splitlines() if "<circle" not in line)
    body = body.replace("#c5c8c6", "")  # this and the circles are the window's, not ours
    for red, green, blue in set(re.findall(r"#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})", body)):
        assert red == green == blue
