"""Which screen shows which mode; each is imported when it is first gone to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.screen import Screen

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
        from workbench.tui.live.state import PAGE_MODES

        live = LiveScreen(app.current.store, app.current.player)
        if app.saved.page_mode in PAGE_MODES:
            live.state.page_mode = app.saved.page_mode
        return live
    if mode == "requests" and app.current is not None:
        from workbench.tui.requests.screen import RequestsScreen

        return RequestsScreen(app.current.store, app.current.player, app.saved)
    if mode == "compare" and app.compared is not None:
        from workbench.tui.compare.screen import CompareScreen

        compare = CompareScreen(*app.compared)
        compare.state.lock = app.saved.lock
        return compare
    if mode == "why" and app.current is not None:
        from workbench.tui.why.screen import WhyScreen

        return WhyScreen(app.current.store)
    if mode == "roofline" and app.current is not None:
        from workbench.tui.roofline.screen import RooflineScreen

        return RooflineScreen(app.current.store, app.current.player)
    if mode == "gaps":
        from workbench.tui.gaps.screen import GapsScreen

        return GapsScreen()
    raise KeyError(mode)


def remember(app: WorkbenchApp, screen: Screen[Any]) -> None:
    """Note how a screen is looked at, for the next of its mode and the next session."""
    mode = getattr(screen, "MODE", None)
    if mode == "live":
        from workbench.tui.live.screen import LiveScreen

        if isinstance(screen, LiveScreen):
            app.saved.page_mode, app.saved.zoom = screen.state.page_mode, screen.player.zoom
    elif mode == "compare":
        from workbench.tui.compare.screen import CompareScreen

        if isinstance(screen, CompareScreen):
            app.saved.lock, app.saved.zoom = screen.state.lock, screen.player.zoom
