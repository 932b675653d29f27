"""What all panes of the compare screen look at together."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from workbench.analysis.comparison import Comparison
from workbench.tui.opened_run import OpenedRun
from workbench.tui.store.pairing import LOCKS, Lock, Pairing
from workbench.tui.store.player import Player

_EVERY_S: Final = 0.25
VIEWS: Final = ("metrics", "differences", "divergence")


@dataclass(frozen=True, slots=True)
class _Made:
    """A pairing, of what, of how much of B, and when."""

    key: tuple[object, ...]
    b_size: tuple[int, ...]
    made_s: float
    pairing: Pairing


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
    _pairing: _Made | None = field(default=None)

    @property
    def player(self) -> Player:
        """The cursor."""
        return self.a.player

    @property
    def empty(self) -> bool:
        """Whether a run has no step yet."""
        return self.player.empty or not self._b_size()[0]

    def pairing(self) -> Pairing:
        """Steps of A with their counterparts; made anew when a run has grown.

        While B grows, that is four times a second: its further steps only add counterparts.
        """
        replica, now_s = self.player.replica, time.monotonic()
        key = (id(self.a), self.lock, replica, len(self.player.steps), self.player.steps.first)
        old, size = self._pairing, self._b_size()
        grown = old is not None and old.b_size != size and now_s > old.made_s + _EVERY_S
        if old is None or old.key != key or grown:
            made = Pairing(self.a.store, self.b.store, replica, self.lock)
            self._pairing = _Made(key, size, now_s, made)
            return made
        return old.pairing

    def key(self) -> tuple[object, ...]:
        """What every pane depends on."""
        player, made_s = self.player, 0.0
        if not self.empty:
            self.pairing()
            made_s = 0.0 if self._pairing is None else self._pairing.made_s
        return (
            id(self.a), id(self.b), self.lock, player.replica, player.position, player.head,
            player.zoom, player.selected_request, made_s, id(self.comparison),
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
