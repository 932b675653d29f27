"""Which screen shows which mode; each is imported when it is first gone to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.tui.app import WorkbenchApp
    from workbench.tui.workbench_screen import WorkbenchScreen


def make_screen(app: WorkbenchApp, mode: str) -> WorkbenchScreen:
    """A new screen of a mode, for the runs that the application has open."""
    if mode == "scenarios":
        from workbench.tui.scenarios.screen import ScenariosScreen

        return ScenariosScreen(app.saved)
    if mode == "live" and app.current is not None:
        from workbench.tui.live.screen import LiveScreen

        return LiveScreen(app.current.store, app.current.player)
    if mode == "live" and app.current is not None:
        from workbench.tui.live.screen import LiveScreen

        return LiveScreen(app.current.store, app.current.player)
    if mode == "requests" and app.current is not None:
        from workbench.tui.requests.screen import RequestsScreen

        return RequestsScreen(app.current.store, app.current.player, app.saved)
    if mode == "compare" and app.compared is not None:
        from workbench.tui.compare.screen import CompareScreen

        return CompareScreen(*app.compared)
    if mode == "why" and app.current is not None:
        from workbench.tui.why.screen import WhyScreen

        return WhyScreen(app.current.store)
    if mode == "compare" and app.compared is not None:
        from workbench.tui.compare.screen import CompareScreen

        return CompareScreen(*app.compared)
    raise KeyError(mode)
