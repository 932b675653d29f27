"""A run that the interface shows, and the child process that feeds it, if one does."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from workbench.record.stream import HeaderFrame
from workbench.tui.child_run import ChildRun
from workbench.tui.store import Player, RunStore


@dataclass(slots=True, eq=False)
class OpenedRun:
    """A store, a cursor in it, and where its rows come from.

    Attributes:
        store, player: the run and the place in it that is looked at.
        child: the process that is running it, or has; None for a recorded run.
    """

    store: RunStore
    player: Player
    child: ChildRun | None = None

    @classmethod
    def recorded(cls, path: Path) -> OpenedRun:
        """A recorded run, at its beginning; one that failed at the step where it did.

        Raises:
            RunRecordError: there is none, or it is damaged.
        """
        store = RunStore.open(path)
        player = Player(store)
        if store.header.status == "failed":
            player.seek(player.head)
        return cls(store, player)

    @property
    def trouble(self) -> str | None:
        """How a recorded run ended that did not end well."""
        header = self.store.header
        if self.child is not None or header.status == "complete":
            return None
        return header.how_it_ended()

    @classmethod
    def streamed(cls, header: HeaderFrame, child: ChildRun, ring_steps: int | None) -> OpenedRun:
        """A run of which only the header has come."""
        store = RunStore(header.header, ring_steps=ring_steps)
        return cls(store, Player(store), child)

    @property
    def running(self) -> bool:
        """Whether rows may still come."""
        return self.child is not None and self.child.running

    @property
    def label(self) -> str:
        """What to call it: the directory of its record, or the scenario's name."""
        path = self.store.path
        return path.name if path is not None else self.store.header.name

    def command_line(self) -> str:
        """The command that shows this run, or that made it."""
        if self.store.path is not None:
            return shlex.join(("workbench", "tui", str(self.store.path)))
        return self.child.command.shown() if self.child is not None else "workbench tui"

    def drain(self, budget_s: float) -> bool:
        """Take frames that are ready, for no longer than `budget_s`; whether any came."""
        if self.child is None:
            return False
        until, came = time.monotonic() + budget_s, False
        for frame in self.child.take():
            self.store.take(frame)
            came = True
            if time.monotonic() >= until:
                break
        if self.store.path is None:
            self.store.path = self.child.record
        return came
