"""What all panes of the compare screen look at together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from workbench.analysis.comparison import Comparison
from workbench.tui.opened_run import OpenedRun
from workbench.tui.store.pairing import LOCKS, Lock, Pairing
from workbench.tui.store.player import Player

VIEWS: Final = ("metrics", "differences", "divergence")


@dataclass(slots=True)
class CompareState:
    """Two runs; the cursor of A leads.

    Attributes:
        a, b: the runs.
        lock: what makes a step of B belong to one of A.
        view: what the findings show, one of `VIEWS`.
        comparison: of the two, once it has been made.
        trouble: why it could not be made.
        scroll: first line of the findings that is shown.
    """

    a: OpenedRun
    b: OpenedRun
    lock: Lock = LOCKS[0]
    view: str = VIEWS[0]
    comparison: Comparison | None = None
    trouble: str | None = None
    scroll: int = 0
    _pairing: tuple[object, Pairing] | None = field(default=None)

    @property
    def player(self) -> Player:
        """The cursor."""
        return self.a.player

    @property
    def empty(self) -> bool:
        """Whether a run has no step yet."""
        return self.player.empty or not self._b_size()[0]

    def pairing(self) -> Pairing:
        """Steps of A with their counterparts; made anew when a run has grown."""
        replica = self.player.replica
        key = (id(self.a), self.lock, replica, len(self.player.steps), *self._b_size())
        if self._pairing is None or self._pairing[0] != key:
            made = Pairing(self.a.store, self.b.store, replica, self.lock)
            self._pairing = (key, made)
        return self._pairing[1]

    def key(self) -> tuple[object, ...]:
        """What every pane depends on."""
        player = self.player
        return (
            id(self.a), id(self.b), self.lock, player.replica, player.position, player.head,
            player.zoom, player.selected_request, self._b_size(), id(self.comparison),
        )  # fmt: skip

    def swap(self) -> None:
        """Make B lead; the place in the run stays."""
        other = self.pairing().position_in_b(self.player.position) if not self.empty else -1
        zoom = self.player.zoom
        self.a, self.b = self.b, self.a
        self.player.zoom = zoom
        if other >= 0:
            self.player.seek(other)
        self.comparison = None

    def _b_size(self) -> tuple[int, ...]:
        store = self.b.store
        replica = min(self.player.replica, len(store.replicas) - 1)
        return len(store.replicas[replica].steps), len(store.requests)
