"""Makes the pictures of the interface that the README and docs/tui.md show, from real runs.

    python benchmarks/tui_pictures.py [--runs FOLDER] [--only live compare ...]

Simulates the shipped scenario prefix_cache_chat with a cache that is too small for it, forks it at
a step with a small limit on prefill, opens both in the interface as a user would, presses keys, and
draws what the screen then shows as PNG into docs/. The same sources give the same pictures. Needs
resvg-py; letters come from the DejaVu Sans Mono that Matplotlib brings.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("COLORTERM", "truecolor")
os.environ.pop("NO_COLOR", None)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib as mpl
import numpy as np
import resvg_py
from textual.pilot import Pilot

from workbench.profile.latest_gaps import MEASURED_HERE
from workbench.tui.app import WorkbenchApp
from workbench.tui.chart_screen import ChartScreen
from workbench.tui.opened_run import OpenedRun

ROOT = Path(__file__).resolve().parent.parent
GAPS = ROOT / "benchmarks" / "results" / "profile" / "h200_gaps.json"
SCENARIO = ["prefix_cache_chat", "--set", "deployment.pools.0.num_pages=4000"]
FORK_STEP, SHOWN_STEP = 9000, 9060
SIZE = (120, 36)
FONTS = Path(mpl.get_data_path()) / "fonts" / "ttf"

CELL, LINE, ASCENT = 12.2, 24.4, 18.5  # of a cell of Textual's SVG, in its units
EIGHTHS = {char: (i + 1) / 8 for i, char in enumerate("▁▂▃▄▅▆▇█")}
LEFT = {"▌": (0.0, 0.5), "▐": (0.5, 0.5), "▏": (0.0, 0.125)}
SHADES = {"░": 0.25, "▒": 0.5, "▓": 0.75}
BLOCKS = {*EIGHTHS, *LEFT, *SHADES, "▀", "■"}
TEXT = re.compile(
    r'<text class="(?P<ink>[^"]+)" x="(?P<x>[\d.]+)" y="(?P<y>[\d.]+)" textLength="[\d.]+" '
    r'clip-path="[^"]+">(?P<text>[^<]*)</text>'
)


@dataclass(frozen=True)
class Picture:
    """A screen to show: keys to press on the live screen of the run, and what to wait for."""

    name: str
    go: Callable[[WorkbenchApp, Pilot[None]], Awaitable[None]]


def blocks_as_boxes(svg: str) -> str:
    """Block characters drawn as boxes, since those of a font leave seams between cells."""
    return TEXT.sub(_boxes, svg)


def _boxes(match: re.Match[str]) -> str:
    text = match["text"].replace("&#160;", "\N{NO-BREAK SPACE}")
    text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    if not BLOCKS & set(text):
        return match[0]
    x, top = float(match["x"]), float(match["y"]) - ASCENT
    boxes = []
    for found in re.finditer(r"(.)\1*", text):
        char, count = found[1], len(found[0])
        if char in BLOCKS:
            boxes.append(_box(match["ink"], char, x + found.start() * CELL, top, count))
        elif char != "\N{NO-BREAK SPACE}":
            plain = found[0].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            boxes.append(
                f'<text class="{match["ink"]}" x="{x + found.start() * CELL:.1f}" y="{match["y"]}" '
                f'textLength="{count * CELL:.1f}">{plain}</text>'
            )
    return "".join(boxes)


def _box(ink: str, char: str, x: float, top: float, count: int) -> str:
    width, height, opacity, down = count * CELL, LINE, 1.0, 0.0
    if char in EIGHTHS:
        height = LINE * EIGHTHS[char]
        down = LINE - height
    elif char == "▀":
        height = LINE / 2
    elif char == "■":
        return "".join(
            f'<rect class="{ink}" x="{x + i * CELL + 1:.1f}" y="{top + 7.5:.1f}" width="10" '
            'height="10"/>'
            for i in range(count)
        )
    elif char in LEFT:
        left, share = LEFT[char]
        return "".join(
            f'<rect class="{ink}" x="{x + (i + left) * CELL:.2f}" y="{top:.2f}" '
            f'width="{share * CELL:.2f}" height="{LINE + 0.2:.2f}"/>'
            for i in range(count)
        )
    else:
        opacity = SHADES[char]
    return (
        f'<rect class="{ink}" x="{x:.2f}" y="{top + down:.2f}" width="{width + 0.1:.2f}" '
        f'height="{height + 0.2:.2f}" fill-opacity="{opacity}"/>'
    )


def simulate(folder: Path, *arguments: str) -> Path:
    """Simulate in a process of its own; the directory of the record."""
    before = set((folder / "runs").glob("*"))
    subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "workbench", "simulate", *arguments, "--detail", "pages", "-q"],
        cwd=folder, check=True, stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    (made,) = set((folder / "runs").glob("*")) - before
    return made


async def until(pilot: Pilot[None], holds: Callable[[], bool]) -> None:
    """Let the application go on until something holds."""
    end = time.monotonic() + 60
    while not holds():
        if time.monotonic() >= end:
            raise TimeoutError("waited in vain")
        await pilot.pause(0.05)


async def live(app: WorkbenchApp, pilot: Pilot[None]) -> None:
    """The run at a step."""
    del app
    await pilot.pause(0.2)


async def request(app: WorkbenchApp, pilot: Pilot[None]) -> None:
    """The same with a request lit up."""
    del app
    await pilot.press("n", "n", "n", "n")
    await pilot.pause(0.2)


async def requests(app: WorkbenchApp, pilot: Pilot[None]) -> None:
    """Requests with a moderate TTFT, and the parts of the longest."""
    await pilot.press("4")
    await until(pilot, lambda: len(app.screen.query("#requests")) > 0)
    await until(pilot, lambda: app.screen.query_one("#requests").count > 0)
    await pilot.press("slash", *"ttft", "less_than_sign", *"120", "enter", "w")
    await until(pilot, lambda: app.screen.query_one("#breakdown").count > 0)


async def scenarios(app: WorkbenchApp, pilot: Pilot[None]) -> None:
    """The list, the form and the previews."""
    await pilot.press("1")
    await until(pilot, lambda: getattr(app.screen, "settled", False))


async def roofline(app: WorkbenchApp, pilot: Pilot[None]) -> None:
    """The classes of a step that computes a prompt beside decoding requests."""
    run = app.current
    if run is None:
        raise RuntimeError("no run is open")
    steps, player = run.player.steps, run.player
    mixed = np.flatnonzero(
        (steps.column("prefill_tokens") > 300) & (steps.column("decode_requests") > 8)
    )
    player.seek(steps.first + int(mixed[mixed > 100][0]))
    await pilot.press("6")
    await until(pilot, lambda: getattr(app.screen, "MODE", "") == "roofline")
    await pilot.pause(0.2)


async def gaps(app: WorkbenchApp, pilot: Pilot[None]) -> None:
    """What was measured on an H200, as if it had been measured here."""
    MEASURED_HERE.parent.mkdir(exist_ok=True)
    MEASURED_HERE.write_bytes(GAPS.read_bytes())
    await pilot.press("7")
    await until(pilot, lambda: getattr(app.screen, "MODE", "") == "gaps")
    await pilot.pause(0.2)


def compare_with(fork: Path) -> Callable[[WorkbenchApp, Pilot[None]], Awaitable[None]]:
    """The run beside its fork."""

    async def compare(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        run = app.current
        if run is not None:
            app.compare_runs(run, OpenedRun.recorded(fork))
        await until(pilot, lambda: getattr(app.screen, "MODE", "") == "compare")
        await until(pilot, lambda: app.screen.state.comparison is not None)
        await pilot.pause(0.2)

    return compare


async def photograph(run: Path, picture: Picture) -> str:
    """The SVG of a screen."""
    opened = OpenedRun.recorded(run)
    app = WorkbenchApp(opened, state_file=run.parent / "no_state.json")
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: getattr(app.screen, "MODE", "") == "live")
        opened.player.seek(SHOWN_STEP)
        await picture.go(app, pilot)
        if isinstance(app.screen, ChartScreen):
            app.screen.draw_panes()
        return app.export_screenshot(title="workbench tui")


def draw(svg: str, path: Path) -> None:
    """The SVG as PNG."""
    png = resvg_py.svg_to_bytes(
        svg_string=blocks_as_boxes(svg),
        skip_system_fonts=True,
        font_dirs=[str(FONTS)],
        monospace_family="DejaVu Sans Mono",
        sans_serif_family="DejaVu Sans",
        font_family="DejaVu Sans Mono",
    )
    path.write_bytes(bytes(png))
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KiB")


def main() -> None:
    """Simulate, photograph, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, help="keep the runs here; default: nowhere")
    parser.add_argument("--only", nargs="*", help="names of the pictures to make; default: all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.runs or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        run = simulate(folder, *SCENARIO)
        fork = simulate(
            folder, "--fork", f"runs/{run.name}@{FORK_STEP}", "--set",
            "scheduler.max_prefill_tokens=256",
        )  # fmt: skip
        for days, record in ((2, run), (1, fork)):  # the list says how old they are
            written_s = time.time() - 86_400 * days - 60
            os.utime(record / "header.json", (written_s, written_s))
        os.chdir(folder)
        for picture in (
            Picture("live", live),
            Picture("request", request),
            Picture("compare", compare_with(fork)),
            Picture("requests", requests),
            Picture("scenarios", scenarios),
            Picture("roofline", roofline),
            Picture("gaps", gaps),
        ):
            if not arguments.only or picture.name in arguments.only:
                svg = asyncio.run(photograph(run, picture))
                draw(svg, ROOT / "docs" / f"tui_{picture.name}.png")


if __name__ == "__main__":
    main()
