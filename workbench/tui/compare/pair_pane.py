"""A chart of both runs in the columns of the one that leads."""

from __future__ import annotations

from collections.abc import Hashable

from workbench.tui.chart_pane import ChartPane
from workbench.tui.compare.state import CompareState


class PairPane(ChartPane):
    """Draws anew whenever the cursor moves, or what the runs are locked by changes."""

    def __init__(self, state: CompareState, *, id: str) -> None:  # noqa: A002 - as in Textual
        super().__init__(id=id)
        self._state = state

    def key(self) -> Hashable:
        """As `ChartPane.key`."""
        player = self._state.player
        return self._state.key(), player.playing or player.following
