"""Small windows over a screen: help, a failure with its last lines, and the prompt of `:`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, TypeVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Button, Input, Static

from workbench.tui.child_run import Crash
from workbench.tui.goto_target import EXAMPLES, NoTargetError, Target, parse_target
from workbench.tui.screen_help import GLOSSARY, ScreenHelp

Result = TypeVar("Result")
_KEY_NAMES = {
    "full_stop": ".", "comma": ",", "question_mark": "?", "colon": ":", "slash": "/",
    "left_square_bracket": "[", "right_square_bracket": "]", "plus": "+", "minus": "-",
    "apostrophe": "'", "left": "←", "right": "→", "up": "↑", "down": "↓", "escape": "esc",
    "ctrl+p": "^p", "underscore": "_", "less_than_sign": "<", "greater_than_sign": ">",
}  # fmt: skip


def key_name(key: str) -> str:
    """A key as it is written in help and footer."""
    return _KEY_NAMES.get(key, key.replace("ctrl+", "^"))


class KeyHelp(NamedTuple):
    """A binding as people see it.

    Attributes:
        keys: that trigger it.
        what: it does.
        key_id: to remap it by; "" for the few that Textual keeps to itself.
        active: the binding and whose it is.
    """

    keys: str
    what: str
    key_id: str
    active: ActiveBinding


def keys_of(screen: Screen[Any]) -> list[KeyHelp]:
    """All bindings that work on a screen now, the screen's own first."""
    found: dict[str, list[tuple[str, ActiveBinding]]] = {}
    for key, active in screen.active_bindings.items():
        binding = active.binding
        if binding.description and not binding.system:
            found.setdefault(binding.id or binding.action, []).append((key_name(key), active))
    helps = [
        KeyHelp(
            " ".join(key for key, _ in keys),
            active.tooltip or active.binding.tooltip or active.binding.description,
            active.binding.id or "",
            active,
        )
        for keys in found.values()
        for _, active in keys[:1]
    ]
    return sorted(helps, key=lambda entry: entry.active.node is screen.app)


class Dialog(ModalScreen[Result]):
    """A window in the middle, over a dimmed screen: what a subclass puts into its `.box`."""

    DEFAULT_CSS = """
    Dialog { align: center middle; background: $background 60%; }
    Dialog > .box {
        max-width: 96%; height: auto; max-height: 94%;
        background: $surface; border: round $border; padding: 0 2;
        border-title-color: $accent; border-subtitle-color: $foreground 60%;
    }
    """


class HelpDialog(Dialog[None]):
    """Keys of a screen, how to read its charts, and its words.

    Args:
        guide: of the screen.
        keys: as `keys_of` gives them.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "dismiss", "Close", id="help.close"),
    ]
    DEFAULT_CSS = """
    HelpDialog > .box { width: 100; }
    HelpDialog Static { height: auto; margin: 0 0 1 0; }
    HelpDialog .heading { margin: 0; }
    """

    def __init__(self, guide: ScreenHelp, keys: Iterable[KeyHelp]) -> None:
        super().__init__()
        self._guide = guide
        self._keys = list(keys)

    def compose(self) -> ComposeResult:
        """Three tables below one another."""
        with VerticalScroll(classes="box") as box:
            box.border_title = f"Help: {self._guide.title}"
            box.border_subtitle = "esc closes"
            yield Static(_heading("How to read this screen"), classes="heading")
            yield Static(_two_columns(self._guide.how_to_read, "bold", 24))
            yield Static(_heading("Keys, and the ids to remap them by"), classes="heading")
            yield Static(_key_table(self._keys))
            if self._guide.words:
                yield Static(_heading("Words"), classes="heading")
                words = ((word, GLOSSARY[word]) for word in self._guide.words)
                yield Static(_two_columns(words, "bold", 24))


def _heading(text: str) -> Text:
    return Text(text, style="bold underline")


def _two_columns(rows: Iterable[tuple[str, str]], style: str, width: int) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style=style, max_width=width)
    table.add_column(ratio=1)
    for left, right in rows:
        table.add_row(left, right)
    return table


def _key_table(keys: Iterable[KeyHelp]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", max_width=16)
    table.add_column(ratio=1)
    table.add_column(style="dim", justify="right")
    for entry in keys:
        table.add_row(entry.keys, entry.what, entry.key_id)
    return table


class FailureDialog(Dialog[None]):
    """Something failed: what, and the last lines that it said.

    Args:
        title: what was tried.
        crash: how it ended.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "dismiss", "Close", id="failure.close"),
        Binding("y", "copy", "Copy", id="failure.copy"),
    ]
    DEFAULT_CSS = """
    FailureDialog > .box {
        width: 104; max-height: 90%; border: round $error; border-title-color: $error;
    }
    FailureDialog .message { text-style: bold; margin: 1 0; height: auto; }
    FailureDialog .lines { height: auto; color: $foreground 85%; }
    FailureDialog Horizontal { height: auto; margin: 1 0 0 0; align-horizontal: right; }
    FailureDialog Button { margin: 0 0 0 2; }
    """

    def __init__(self, title: str, crash: Crash) -> None:
        super().__init__()
        self._title = title
        self._crash = crash

    def compose(self) -> ComposeResult:
        """The message, the lines, and two buttons."""
        with VerticalScroll(classes="box") as box:
            box.border_title = self._title
            box.border_subtitle = "y copies · esc closes"
            yield Static(self._crash.message, classes="message", markup=False)
            yield Static("\n".join(self._crash.stderr), classes="lines", markup=False)
            with Horizontal():
                yield Button("Copy", id="copy", compact=True)
                yield Button("Close", id="close", compact=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Copy or close."""
        if event.button.id == "copy":
            self.action_copy()
        else:
            self.dismiss()

    def action_copy(self) -> None:
        """Put the whole text on the clipboard."""
        self.app.copy_to_clipboard(self._crash.text())
        self.app.notify("copied")


class GoToPrompt(ModalScreen[Target | None]):
    """The line in which a step, a request or a time is typed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Close", id="goto.close"),
    ]
    DEFAULT_CSS = """
    GoToPrompt { align: left bottom; background: transparent; }
    GoToPrompt > Horizontal { height: auto; max-height: 4; background: $boost; }
    GoToPrompt Static { width: auto; color: $accent; text-style: bold; }
    GoToPrompt Input { width: 30; background: $boost; }
    GoToPrompt .hint {
        width: 1fr; height: auto; color: $foreground 60%; text-style: none; padding: 0 1;
    }
    """

    def compose(self) -> ComposeResult:
        """A prompt and an example."""
        with Horizontal():
            yield Static(" go to :")
            yield Input(compact=True)
            yield Static(EXAMPLES, classes="hint", markup=False)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Say at each key whether this leads anywhere."""
        self._hint(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go there."""
        try:
            self.dismiss(parse_target(event.value))
        except NoTargetError:
            self._hint(event.value)

    def _hint(self, text: str) -> None:
        hint = EXAMPLES
        if text.strip():
            try:
                hint = str(parse_target(text))
            except NoTargetError as error:
                hint = str(error)
        self.query_one(".hint", Static).update(hint)
