"""One line at the bottom in which something is typed: a filter, a value, a setting."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, Static


class PromptBar(Horizontal):
    """A label, an input and a hint; not shown until `ask`."""

    DEFAULT_CSS = """
    PromptBar { height: auto; max-height: 4; background: $boost; display: none; }
    PromptBar.-asking { display: block; }
    PromptBar .label { width: auto; max-width: 45%; color: $accent; text-style: bold; }
    PromptBar Input { width: 2fr; min-width: 14; background: $boost; }
    PromptBar .hint { width: 4fr; height: auto; color: $foreground 65%; padding: 0 1; }
    PromptBar .hint.-wrong { color: $error; }
    """

    @dataclass
    class Changed(Message):
        """Another text stands there."""

        purpose: str
        value: str

    @dataclass
    class Submitted(Message):
        """The text is what was meant."""

        purpose: str
        value: str

    @dataclass
    class Cancelled(Message):
        """Nothing was meant."""

        purpose: str

    def __init__(self) -> None:
        super().__init__()
        self.purpose = ""
        self._asked_as = ""

    def compose(self) -> ComposeResult:
        """Label, input, hint."""
        yield Static(classes="label", markup=False)
        yield Input(compact=True)
        yield Static(classes="hint", markup=False)

    @property
    def asking(self) -> bool:
        """Whether it is shown."""
        return self.has_class("-asking")

    def ask(self, purpose: str, label: str, value: str = "", hint: str = "") -> None:
        """Show the bar with a value to start from, and give it the keys."""
        self.purpose, self._asked_as = purpose, value
        self.query_one(".label", Static).update(f" {label} ")
        self.hint(hint)
        field = self.query_one(Input)
        with self.prevent(Input.Changed):
            field.value = value
        field.cursor_position = len(value)
        self.add_class("-asking")
        field.focus()

    def hint(self, text: str, *, wrong: bool = False) -> None:
        """Say something about the text."""
        hint = self.query_one(".hint", Static)
        hint.update(" ".join(text.split()))
        hint.set_class(wrong, "-wrong")

    def close(self) -> None:
        """Hide the bar."""
        self.remove_class("-asking")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Tell the screen, unless the bar only just opened."""
        event.stop()
        if self.asking:
            self.post_message(self.Changed(self.purpose, event.value))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Close, and tell the screen."""
        event.stop()
        self.close()
        self.post_message(self.Submitted(self.purpose, event.value))

    def on_key(self, event: events.Key) -> None:
        """Escape takes everything back."""
        if event.key == "escape":
            event.stop()
            event.prevent_default()
            self.close()
            self.post_message(self.Cancelled(self.purpose))
