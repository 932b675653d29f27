"""A list whose rows are lines that it holds; how one is drawn is up to a subclass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from workbench.tui.list_pane import ListPane

Line = TypeVar("Line")


class LinesPane(ListPane, Generic[Line]):
    """Holds what it lists, as a list that is not long."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - as in Textual
        super().__init__(id=id)
        self._lines: Sequence[Line] = ()

    @property
    def count(self) -> int:
        return len(self._lines)

    @property
    def line(self) -> Line | None:
        """The line under the cursor."""
        return self.line_at(self.cursor)

    def line_at(self, row: int) -> Line | None:
        """The line of a row; None outside."""
        return self._lines[row] if 0 <= row < len(self._lines) else None
