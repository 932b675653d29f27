"""What if: simulate on from the step under the cursor with one setting changed, and compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from workbench.record.header import RunHeader
from workbench.running.fork import CHANGEABLE
from workbench.scenario.errors import ScenarioErrors
from workbench.scenario.source import load_resolved
from workbench.tui.child_run import RunCommand
from workbench.tui.dialogs import Dialog
from workbench.tui.store import Player, RunStore

if TYPE_CHECKING:
    from workbench.tui.opened_run import OpenedRun
    from workbench.tui.workbench_screen import WorkbenchScreen

_KEY_WIDTH = 46


@dataclass(frozen=True, slots=True)
class ForkOrigin:
    """Where a fork begins.

    Attributes:
        run: directory of the run that it repeats.
        header: of that run.
        replica, step: the first step that is planned otherwise.
    """

    run: Path
    header: RunHeader
    replica: int
    step: int

    def command(self, override: str) -> RunCommand:
        """The command that forks the run with one override, `key=value`."""
        place = f"{self.replica}:{self.step}" if self.replica else str(self.step)
        arguments = ("simulate", "--fork", f"{self.run}@{place}", "--set", override)
        detail, runs = self.header.detail, str(self.run.parent)
        return RunCommand((*arguments, "--detail", detail, "--runs-dir", runs))


def settings_of(header: RunHeader) -> dict[str, Any]:
    """Every setting that a fork may change, with its present value, in the scenario's order."""
    found: dict[str, Any] = {}
    pools = header.scenario.get("deployment", {}).get("pools", [])
    for key in CHANGEABLE:
        names = [key.replace(".N.", f".{i}.") for i in range(len(pools))] if ".N." in key else [key]
        for name in names:
            value = _value(header.scenario, name)
            if value is not _ABSENT:
                found[name] = value
    return found


def why_not(store: RunStore, player: Player) -> str | None:
    """Why a run cannot be forked at the cursor; None if it can."""
    if store.header.kind != "simulation":
        return "only a simulation can be forked: an engine's run cannot be repeated"
    if player.empty:
        return "there is no step to fork from"
    if store.path is None:
        return "this run is not recorded, so it cannot be repeated"
    if store.status == "running":
        return "fork when the run has ended: its record is not whole yet"
    return None


def fork_here(screen: WorkbenchScreen, store: RunStore, player: Player) -> None:
    """Ask for a setting, start the fork in a child process, and compare it with the run."""
    trouble = why_not(store, player)
    if trouble is not None or store.path is None:
        screen.notify(trouble or "", severity="warning")
        return
    player.pause()
    shell, run = screen.shell, screen.shell.current
    step = player.steps.at(player.position)["step"]
    origin = ForkOrigin(store.path, store.header, player.replica, step)

    def compare(fork: OpenedRun) -> None:
        if run is not None:
            shell.compare_runs(run, fork)

    def begin(override: str | None) -> None:
        if override is not None:
            shell.start_run(origin.command(override), compare)

    shell.push_screen(ForkDialog(origin), begin)


class ForkDialog(Dialog[str | None]):
    """Settings on the left of their values; the result is `key=value`, or None.

    Args:
        origin: where the fork begins.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Close", id="fork.close"),
    ]
    DEFAULT_CSS = """
    ForkDialog > .box { width: 92; padding: 0 1; }
    ForkDialog OptionList {
        height: auto; max-height: 14; border: none; background: $surface; padding: 0;
    }
    ForkDialog Input { background: $boost; margin: 1 0 0 0; }
    ForkDialog Static { height: auto; }
    ForkDialog .problem { color: $error; min-height: 1; }
    ForkDialog .command { color: $accent; margin: 1 0 0 0; }
    """

    def __init__(self, origin: ForkOrigin) -> None:
        super().__init__()
        self._origin = origin
        self._settings = settings_of(origin.header)
        self._key = next(iter(self._settings))

    def compose(self) -> ComposeResult:
        """Settings, the new value, what is wrong with it, and the command."""
        origin = self._origin
        with Vertical(classes="box") as box:
            box.border_title = f"Simulate on from step {origin.step:,}, with one setting changed"
            box.border_subtitle = "↑ ↓ setting · enter starts · esc closes"
            yield OptionList(
                *(
                    Option(f"{key:<{_KEY_WIDTH}} {_shown(value)}", id=key)
                    for key, value in self._settings.items()
                )
            )
            yield Input(compact=True, placeholder="new value")
            yield Static("", classes="problem", markup=False)
            yield Static("", classes="command", markup=False)

    def on_mount(self) -> None:
        """Begin at the first setting."""
        self.query_one(OptionList).highlighted = 0
        self.query_one(OptionList).can_focus = False
        self.query_one(Input).focus()

    def key_up(self) -> None:
        """The setting above."""
        self.query_one(OptionList).action_cursor_up()

    def key_down(self) -> None:
        """The setting below."""
        self.query_one(OptionList).action_cursor_down()

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Another setting: its value is where to begin."""
        if event.option.id is not None:
            self._key = event.option.id
            field = self.query_one(Input)
            field.value = _typed(self._settings[self._key])
            field.action_select_all()
            self._judge(field.value)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """A click on a setting: its value is typed next."""
        del event
        self.query_one(Input).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Judge the value at each key."""
        self._judge(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Start, unless something is wrong with the value."""
        if self._judge(event.value):
            self.dismiss(f"{self._key}={event.value}")

    def _judge(self, value: str) -> bool:
        """Say what is wrong with a value, and what would run; whether it can run."""
        override = f"{self._key}={value}"
        problem = self._problem(override, value)
        self.query_one(".problem", Static).update(problem or "")
        command = self._origin.command(override).shown() if not problem else ""
        self.query_one(".command", Static).update(f"$ {command}" if command else "")
        return not problem

    def _problem(self, override: str, value: str) -> str | None:
        if not value.strip():
            return "type a value; null is none"
        if value == _typed(self._settings[self._key]):
            return "this is its value already: type another"
        try:
            load_resolved(self._origin.header.scenario, str(self._origin.run), (override,))
        except ScenarioErrors as errors:
            first = errors.errors[0]
            return "\n".join(filter(None, (first.message, first.help)))
        return None


class _Absent:
    """Stands for a setting that the scenario does not have."""


_ABSENT = _Absent()


def _value(scenario: dict[str, Any], key: str) -> Any:
    """The value at a dotted key; `_ABSENT` if there is none."""
    found: Any = scenario
    for part in key.split("."):
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict) and part in found:
            found = found[part]
        else:
            return _ABSENT
    return found


def _typed(value: Any) -> str:
    """A value as it is typed after `=`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_typed(entry) for entry in value) + "]"
    return str(value)


def _shown(value: Any) -> str:
    """A value in the list, not too long."""
    text = _typed(value)
    return text if len(text) <= 36 else f"{text[:35]}…"
