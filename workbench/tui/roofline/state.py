"""What the panes of the roofline screen look at: the step under the cursor, and those before it."""

from __future__ import annotations

from typing import Final

from workbench.profile.roofline import Roofline
from workbench.profile.run_roofline import NoRooflineError, RunRoofline, WhatIf
from workbench.tui.store.player import Player
from workbench.tui.store.run_store import RunStore

TRAIL: Final = 60  # steps whose points are shown
_REMEMBERED: Final = 4096
LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


class RooflineState:
    """A run, the cursor in it, and the rooflines of its steps.

    Args:
        store: the run.
        player: the cursor.

    Attributes:
        store, player: as given.
        trouble: why there is no roofline, or None.
        detail: whether the sentences of the classes are shown in place of the plot.
    """

    def __init__(self, store: RunStore, player: Player) -> None:
        self.store, self.player = store, player
        self.trouble: str | None = None
        self.detail = False
        self._models: dict[int, RunRoofline] = {}
        self._known: dict[tuple[int, int], Roofline] = {}

    def key(self) -> tuple[object, ...]:
        """What every pane depends on."""
        player = self.player
        return id(self.store), player.replica, player.position, player.zoom, self.detail

    def model(self) -> RunRoofline | None:
        """Places the steps of the replica that is looked at; None: `trouble` says why not."""
        replica = self.player.replica
        if replica not in self._models:
            try:
                self._models[replica] = RunRoofline(self.store.header, replica)
            except NoRooflineError as error:
                self.trouble = str(error)
                return None
        return self._models[replica]

    def now(self) -> Roofline | None:
        """Of the step under the cursor; None: there is none."""
        return None if self.player.empty else self._at(self.player.position)

    def why_not(self) -> tuple[str, ...]:
        """Sentences that say why there is no roofline of the step under the cursor."""
        if self.model() is None:
            return ("there is none for this run:", self.trouble or "")
        return ("comes with the first step",)

    def trail(self) -> list[Roofline]:
        """Of the steps before it, as many columns back as `TRAIL`, the oldest first."""
        player = self.player
        if player.empty or self.model() is None:
            return []
        width = 1 << player.zoom
        first = max(player.steps.first, player.position - TRAIL * width)
        found = (self._at(at) for at in range(first, player.position, width))
        return [one for one in found if one is not None]

    def what_ifs(self) -> list[WhatIf]:
        """Of the step under the cursor."""
        model, player = self.model(), self.player
        if model is None or player.empty:
            return []
        return model.what_ifs(player.steps.at(player.position))

    def predicted_us(self) -> float:
        """Of the step under the cursor, by the analytic model; 0 without a step."""
        model, player = self.model(), self.player
        if model is None or player.empty:
            return 0.0
        return model.predicted_us(player.steps.at(player.position))

    def _at(self, position: int) -> Roofline | None:
        key = (self.player.replica, position)
        if key not in self._known:
            model = self.model()
            if model is None:
                return None
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = model.at(self.player.steps.at(position))
        return self._known[key]
