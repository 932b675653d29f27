"""The application: modes, keys that work everywhere, open runs and what feeds them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.filter import LineFilter
from textual.screen import Screen

from workbench.record.errors import RunRecordError
from workbench.record.stream import HeaderFrame
from workbench.tui.ascii_lines import AsciiLines
from workbench.tui.child_run import ChildRun, Crash, RunCommand
from workbench.tui.dialogs import FailureDialog, GoToPrompt, HelpDialog, keys_of
from workbench.tui.goto_target import RequestTarget, StepTarget, Target, TimeTarget
from workbench.tui.mode_tabs import MODES
from workbench.tui.opened_run import OpenedRun
from workbench.tui.saved_state import load_state, save_state, state_path
from workbench.tui.themes import OWN_THEMES, data_variables
from workbench.tui.workbench_screen import WorkbenchScreen

OnRun = Callable[[OpenedRun], None]

DEFAULT_FPS: Final = 30
_DRAIN_S: Final = 0.004  # of each frame for rows that have come
_RING_STEPS: Final = 200_000  # of an engine's run are kept in memory; a simulation is kept whole
_HEADER_POLL_S: Final = 0.02
_KEPT: Final = ("scenarios", "requests")  # modes whose screens keep their state
_SHOWN_AT: Final = 2  # place of a mode's screen in the stack: Textual's own blank one is below


class WorkbenchApp(App[None]):
    """The terminal workbench.

    Args:
        start: a recorded run to open, or None for the list of scenarios.
        scenario: name or file to select in the list.
        ascii_only: draw with ASCII alone.
        fps: frames per second at most.
        slow_link: send little: fewer colours, fewer frames.
        state_file: where preferences are kept; None: the user's own.

    Attributes:
        current: the run that live, requests and why show.
        compared: the two runs that compare shows, or None.
        plain: whether categories must be told apart by glyphs, as with `--ascii` and `NO_COLOR`.
    """

    TITLE = "workbench"
    CSS_PATH = "workbench.tcss"
    ENABLE_COMMAND_PALETTE = True
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-normal"), (150, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (32, "-tall"), (50, "-very-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(i), f"mode('{mode}')", title, show=False, id=f"app.mode.{mode}",
                    tooltip=f"Go to {title}")
            for i, (mode, title) in enumerate(MODES.items(), 1)
        ),
        Binding("colon", "go_to", "Go to", id="app.go_to", show=False,
                tooltip="Go to a step, a request or a time"),
        Binding("y", "copy_selection", "Copy", id="app.copy_selection", show=False,
                tooltip="Copy what is selected, as JSON"),
        Binding("Y", "copy_command", "Copy command", id="app.copy_command", show=False,
                tooltip="Copy the command line that gives the same in a shell"),
        Binding("ctrl+t", "next_theme", "Theme", id="app.next_theme", show=False,
                tooltip="Next of the themes"),
        Binding("question_mark,f1", "help", "Help", id="app.help", key_display="?",
                tooltip="Keys, how to read this screen, and its words"),
        Binding("q", "quit", "Quit", id="app.quit", tooltip="Quit; a run that is going on ends"),
    ]  # fmt: skip

    def __init__(
        self,
        start: OpenedRun | None = None,
        *,
        scenario: str | None = None,
        ascii_only: bool = False,
        fps: int = DEFAULT_FPS,
        slow_link: bool = False,
        state_file: Path | None = None,
    ) -> None:
        self._ascii = ascii_only
        super().__init__()
        self._state_file = state_path() if state_file is None else state_file
        self.saved, self._state_trouble = load_state(self._state_file)
        if scenario is not None:
            self.saved.scenario = scenario
        self.fps = fps
        self.slow_link = slow_link
        if start is not None:
            start.player.zoom = self.saved.zoom
        self.current = start
        self.compared: tuple[OpenedRun, OpenedRun] | None = None
        self._feeding: list[OpenedRun] = []
        self._start = start
        self._kept: dict[str, tuple[OpenedRun | None, WorkbenchScreen]] = {}
        self.plain = ascii_only or "NO_COLOR" in os.environ
        for theme in OWN_THEMES:
            self.register_theme(theme)
        if self.saved.theme in self.available_themes:
            self.theme = self.saved.theme

    # What Textual asks

    def get_line_filters(self) -> Sequence[LineFilter]:
        """As ever, and ASCII if that was asked for."""
        filters = list(super().get_line_filters())
        return [*filters, AsciiLines()] if self._ascii else filters

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Data colours for the themes that bring none."""
        return data_variables(self.current_theme.dark)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """All keys of the screen as commands, beside Textual's own."""
        yield from super().get_system_commands(screen)
        for entry in keys_of(screen):
            active = entry.active
            action = partial(self.run_action, active.binding.action, active.node)
            yield SystemCommand(entry.what, f"key {entry.keys}", action)

    def on_mount(self) -> None:
        """Start to feed runs, and say what of the saved state could not be used."""
        if self.saved.keys:
            self.set_keymap(self.saved.keys)
        if self._state_trouble is not None:
            self.notify(self._state_trouble, severity="warning")
        self.set_interval(1 / self.fps, self._feed)
        self.push_screen(self._screen_of("scenarios" if self._start is None else "live"))
        if self._start is not None:
            self._say_trouble(self._start)

    # Modes

    def _screen_of(self, mode: str) -> WorkbenchScreen:
        """The screen of a mode: a new one, but lists keep their place while their run is shown."""
        from workbench.tui.screens import make_screen

        about = self.current if mode == "requests" else None
        kept = self._kept.get(mode)
        if kept is not None and kept[0] is about:
            return kept[1]
        if kept is not None:
            self.uninstall_screen(kept[1])
        screen = make_screen(self, mode)
        if mode in _KEPT:
            self.install_screen(screen, mode)
            self._kept[mode] = (about, screen)
        return screen

    def action_mode(self, mode: str) -> None:
        """Go to a mode; a mode without a run to show says what is missing."""
        if isinstance(self.screen, WorkbenchScreen) and mode == self.screen.MODE:
            return
        missing = self._missing(mode)
        if missing is not None:
            self.notify(missing, severity="warning")
            return
        self._renew(mode)

    def _missing(self, mode: str) -> str | None:
        if mode == "compare" and self.compared is None:
            return "compare needs two runs: mark them with c in the list of scenarios, or fork one"
        if mode in ("live", "requests", "why", "roofline") and self.current is None:
            return "no run is open: start one in the list of scenarios, or open a recorded one"
        return None

    # Runs

    def show_run(self, run: OpenedRun, mode: str = "live") -> None:
        """Look at a run."""
        self.current = run
        self.action_mode(mode) if self._mode() != mode else self._renew(mode)
        self._say_trouble(run)

    def _say_trouble(self, run: OpenedRun) -> None:
        if run.trouble is not None:
            self.notify(run.trouble, severity="error", timeout=20, markup=False)

    def compare_runs(self, a: OpenedRun, b: OpenedRun) -> None:
        """Look at two runs side by side."""
        self.compared = (a, b)
        self.current = a
        self.action_mode("compare") if self._mode() != "compare" else self._renew("compare")

    def _mode(self) -> str | None:
        screen = self.screen
        return screen.MODE if isinstance(screen, WorkbenchScreen) else None

    def _renew(self, mode: str) -> None:
        while len(self.screen_stack) > _SHOWN_AT:
            self.pop_screen()
        self._remember()
        self.switch_screen(self._screen_of(mode))

    def _remember(self) -> None:
        from workbench.tui.screens import remember

        remember(self, self.screen)

    def open_recorded(self, path: Path, then: OnRun | None = None) -> None:
        """Read a recorded run in the background, and show it unless `then` says otherwise."""
        self.run_worker(
            partial(self._open_recorded, path, then or self.show_run),
            thread=True, exclusive=True, group="open", exit_on_error=False,
        )  # fmt: skip

    def _open_recorded(self, path: Path, then: OnRun) -> None:
        try:
            run = OpenedRun.recorded(path)
            run.player.zoom = self.saved.zoom
        except RunRecordError as error:
            crash = Crash(str(error), (), 1)
            self.call_from_thread(self.push_screen, FailureDialog(f"cannot open {path}", crash))
            return
        self.call_from_thread(then, run)

    def start_run(
        self, command: RunCommand, then: OnRun | None = None, after: OnRun | None = None
    ) -> None:
        """Run a command in a child process.

        Args:
            command: what runs.
            then: called with the run as soon as its header has come; None: it is shown.
            after: called with it when it has ended well.
        """
        work = self._start_run(command, then or self._watch, after)
        self.run_worker(work, group="start", exit_on_error=False)

    async def _start_run(self, command: RunCommand, then: OnRun, after: OnRun | None) -> None:
        child = ChildRun(command)
        try:
            await child.start()
        except OSError as error:
            self._report(command, Crash(str(error), (), 1))
            return
        run = await self._first_frame(child)
        if run is not None:
            self._feeding.append(run)
            then(run)
        crash = await child.wait()
        if crash is not None:
            self._report(command, crash)
            if run is not None:
                run.store.end("failed", None, crash.message)
        elif after is not None and run is not None and not child.cancelled:
            while run.running:  # noqa: ASYNC110 - frames are taken as there is time
                await asyncio.sleep(_HEADER_POLL_S)
            after(run)

    async def _first_frame(self, child: ChildRun) -> OpenedRun | None:
        """The run, once its header has come; None if it ends before."""
        while child.running:
            for frame in child.take():
                if isinstance(frame, HeaderFrame):
                    ring = _RING_STEPS if frame.header.kind == "engine" else None
                    run = OpenedRun.streamed(frame, child, ring)
                    run.player.zoom = self.saved.zoom
                    return run
            await asyncio.sleep(_HEADER_POLL_S)
        return None

    def _watch(self, run: OpenedRun) -> None:
        """Show a run that has just begun: an engine's at its end, a simulation in its own time."""
        if run.store.header.kind == "engine":
            run.player.follow()
        else:
            run.player.play()
        self.show_run(run)

    def _report(self, command: RunCommand, crash: Crash) -> None:
        self.push_screen(FailureDialog(command.shown(), crash))

    def cancel_run(self) -> bool:
        """End the run that is shown, keeping what there is; whether there was one going on."""
        run = self.current
        if run is None or run.child is None or not run.child.running or run.child.cancelled:
            return False
        run.child.cancel()
        self.notify("the run is ending; what there is of it is kept")
        return True

    def _feed(self) -> None:
        for run in list(self._feeding):
            run.drain(_DRAIN_S)
            if not run.running:
                self._feeding.remove(run)

    # Keys that work everywhere

    def action_help(self) -> None:
        """Show the help of the screen."""
        screen = self.screen
        if isinstance(screen, WorkbenchScreen):
            self.push_screen(HelpDialog(screen.GUIDE, keys_of(screen)))

    def action_go_to(self) -> None:
        """Ask where to go, and go."""
        self.push_screen(GoToPrompt(), self._go)

    def _go(self, target: Target | None) -> None:
        if target is not None:
            self.go_to(target)

    def go_to(self, target: Target) -> None:
        """Go to a step, a request or an instant of the current run."""
        if self.current is None:
            self.notify("no run is open", severity="warning")
            return
        player = self.current.player
        if isinstance(target, RequestTarget):
            self.go_to_request(target.request_id)
            return
        if isinstance(target, TimeTarget):
            player.pause()
            player.seek_time(target.t_s * 1e9)
        elif not self._go_to_step(target):
            return
        if self._mode() not in ("live", "compare"):
            self.action_mode("live")

    def _go_to_step(self, target: StepTarget) -> bool:
        assert self.current is not None  # noqa: S101 - go_to has looked
        player = self.current.player
        if target.replica is not None:
            if (last := len(player.store.replicas) - 1) < target.replica:
                text = f"there is no replica {target.replica}; the last one is {last}"
                self.notify(text, severity="warning")
                return False
            player.go_to_replica(target.replica)
        player.pause()
        if player.empty:
            self.notify("there is no step yet", severity="warning")
            return True
        player.seek(player.steps.position_of(target.step))
        found = player.steps.at(player.position)["step"]
        if found != target.step:
            self.notify(f"there is no step {target.step:,}; this is step {found:,}")
        return True

    def go_to_request(self, request_id: int) -> None:
        """Select a request, and show it if the screen does not."""
        if self.current is None:
            return
        try:
            self.current.store.requests.row(request_id)
        except KeyError:
            self.notify(f"the run has no request {request_id}", severity="warning")
            return
        self.current.player.selected_request = request_id
        screen = self.screen
        if isinstance(screen, WorkbenchScreen) and not screen.reveal_request(request_id):
            self.action_mode("requests")

    def action_copy_selection(self) -> None:
        """Copy the selection as JSON."""
        screen = self.screen
        found = screen.selection() if isinstance(screen, WorkbenchScreen) else None
        self._copy(None if found is None else json.dumps(found, indent=2), "the selection")

    def action_copy_command(self) -> None:
        """Copy the command line."""
        screen = self.screen
        found = screen.command_line() if isinstance(screen, WorkbenchScreen) else None
        self._copy(found, found or "")

    def _copy(self, text: str | None, what: str) -> None:
        if text is None:
            self.notify("nothing is selected", severity="warning")
            return
        self.copy_to_clipboard(text)
        self.notify(f"copied {what}")

    def action_next_theme(self) -> None:
        """Take the next theme, own ones first."""
        own = [theme.name for theme in OWN_THEMES]
        names = [*own, *sorted(name for name in self.available_themes if name not in own)]
        self.theme = names[(names.index(self.theme) + 1) % len(names)]
        self.notify(f"theme {self.theme}", timeout=2)

    async def action_quit(self) -> None:
        """End what runs, remember where we were, and leave."""
        self._remember()
        self.saved.theme = self.theme
        save_state(self._state_file, self.saved)
        for run in self._feeding:
            if run.child is not None:
                await run.child.close()
        self.exit()
