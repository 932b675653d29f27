"""Driving the interface in tests: without a terminal, at a size, with keys, until something holds.

Nothing here waits a fixed time for work that takes its own: `until` looks again and again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from workbench.tui.app import WorkbenchApp
from workbench.tui.opened_run import OpenedRun
from workbench.tui.scenarios.screen import ScenariosScreen
from workbench.tui.workbench_screen import WorkbenchScreen

Journey = Callable[[WorkbenchApp, Pilot[None]], Awaitable[None]]

_NAMES = {
    " ": "space", ".": "full_stop", ",": "comma", "=": "equals_sign", ">": "greater_than_sign",
    "<": "less_than_sign", "&": "ampersand", ":": "colon", "_": "underscore", "-": "minus",
    "{": "left_curly_bracket", "}": "right_curly_bracket", "!": "exclamation_mark", "/": "slash",
}  # fmt: skip


def drive(journey: Journey, size: tuple[int, int] = (120, 36), **arguments: Any) -> WorkbenchApp:
    """Run a journey in an application of its own, in the current directory."""
    arguments.setdefault("state_file", Path("state.json"))

    async def run() -> WorkbenchApp:
        app = WorkbenchApp(**arguments)
        app.NOTIFICATION_TIMEOUT = 3600  # what was told is still there, however long a test takes
        async with app.run_test(size=size) as pilot:
            await journey(app, pilot)
        return app

    return asyncio.run(run())


async def until(pilot: Pilot[None], holds: Callable[[], bool], seconds: float = 90.0) -> None:
    """Let the application go on until something holds; an error if it never does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        await pilot.pause(0.02)


async def types(pilot: Pilot[None], text: str) -> None:
    """Press the keys of a text."""
    await pilot.press(*(_NAMES.get(char, char) for char in text))


def mode(app: WorkbenchApp) -> str | None:
    """The mode that is shown, None behind a dialog."""
    screen = app.screen
    return screen.MODE if isinstance(screen, WorkbenchScreen) else None


async def listed(app: WorkbenchApp, pilot: Pilot[None]) -> ScenariosScreen:
    """The screen of scenarios, once it has listed and assessed what is selected."""
    screen = app.screen
    assert isinstance(screen, ScenariosScreen)
    await until(pilot, lambda: screen.settled)
    return screen


async def shown(app: WorkbenchApp, pilot: Pilot[None], name: str) -> None:
    """Wait for a mode."""
    await until(pilot, lambda: mode(app) == name)
    await pilot.pause()


async def current(app: WorkbenchApp, pilot: Pilot[None]) -> OpenedRun:
    """The run that is shown, once it has ended."""
    await until(pilot, lambda: app.current is not None and not app.current.running)
    assert app.current is not None
    return app.current
