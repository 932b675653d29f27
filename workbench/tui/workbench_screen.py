"""What the shell asks of every screen: its help, what `y` and `Y` copy, and where it can go to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual import events
from textual.screen import Screen

from workbench.tui.screen_help import ScreenHelp

if TYPE_CHECKING:
    from workbench.tui.app import WorkbenchApp


_TINY_ROWS: Final = 16  # below which charts make room for the lines that say where one is


class WorkbenchScreen(Screen[None]):
    """A screen of one mode of the workbench.

    Attributes:
        GUIDE: what `?` shows besides the keys.
        MODE: the mode of `WorkbenchApp` that shows it.
    """

    GUIDE: ClassVar[ScreenHelp]
    MODE: ClassVar[str]

    @property
    def shell(self) -> WorkbenchApp:
        """The application, with its type."""
        from workbench.tui.app import WorkbenchApp

        app = self.app
        assert isinstance(app, WorkbenchApp)  # noqa: S101 - for the type checker
        return app

    def on_resize(self, event: events.Resize) -> None:
        """On the lowest terminals some panes go; the rules of each screen say which."""
        self.set_class(event.size.height < _TINY_ROWS, "-tiny")

    def selection(self) -> dict[str, Any] | None:
        """What is selected, as JSON data, for `y`; None if nothing is."""
        return None

    def command_line(self) -> str | None:
        """The command that gives in a shell what this screen shows, for `Y`."""
        return None

    def reveal_request(self, request_id: int) -> bool:
        """Bring a request into view, if this screen can; whether it could."""
        del request_id
        return False
