"""Where in a run a view is, and how it moves: play, pause, step, speed, zoom, marks, loop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from workbench.tui.store.replica_log import ReplicaLog
from workbench.tui.store.run_store import RunStore
from workbench.tui.store.step_log import StepLog

MAX: Final = math.inf  # of SPEEDS: the whole run in `_MAX_RUN_S`
SPEEDS: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 1000.0, MAX)
MAX_ZOOM: Final = 16  # 65,536 steps per column
_MAX_RUN_S: Final = 5.0
_NS_PER_S: Final = 1e9


@dataclass(slots=True)
class Player:
    """A cursor over the steps of one replica of a store.

    Attributes:
        store: the run.
        replica: number of the replica whose steps the cursor counts.
        playing: whether `tick` moves the cursor.
        following: whether the cursor stays at the end of a growing run.
        speed: seconds of the run per second of looking, one of `SPEEDS`.
        zoom: a column of a chart holds 2**zoom steps.
        by_time: whether columns are equally long in time instead.
        marks: positions that were marked, ascending.
        loop: first and last position of a loop, if one is set.
        selected_request: request that all views light up.
    """

    store: RunStore
    replica: int = 0
    playing: bool = False
    following: bool = False
    speed: float = 1.0
    zoom: int = 0
    by_time: bool = False
    marks: list[int] = field(default_factory=list)
    loop: tuple[int, int] | None = None
    selected_request: int | None = None
    _position: int = 0
    _t_ns: float = 0.0
    _loop_start: int | None = None

    @property
    def log(self) -> ReplicaLog:
        """The replica that the cursor is on."""
        return self.store.replicas[self.replica]

    @property
    def steps(self) -> StepLog:
        """Its steps."""
        return self.log.steps

    @property
    def head(self) -> int:
        """Position of the last step there is; -1 without any."""
        return self.steps.end - 1

    @property
    def empty(self) -> bool:
        """Whether there is no step to be at."""
        return not len(self.steps)

    @property
    def position(self) -> int:
        """Where the cursor is: the position of a step that is held; -1 while there is none."""
        if self.empty:
            return -1
        return min(max(self._position, self.steps.first), self.head)

    @property
    def t_ns(self) -> int:
        """When the step under the cursor ended; 0 while there is none."""
        return 0 if self.empty else self.steps.at(self.position)["end_ns"]

    @property
    def behind(self) -> int:
        """Steps between the cursor and the last one."""
        return max(self.head - self.position, 0)

    def tick(self, seconds: float) -> bool:
        """Let time pass; whether the cursor moved."""
        if self.empty:
            return False
        before = self._position
        if self.following:
            self._put(self.head)
        elif self.playing:
            self._play(seconds)
        return self._position != before

    def play(self) -> None:
        """Start; from the beginning if the cursor is at the end of a run that has ended."""
        self.playing = True
        if self.position >= self.head and self.store.status != "running":
            self._put(self.steps.first)

    def pause(self) -> None:
        """Stand still, also if the run goes on."""
        self.playing = self.following = False

    def toggle(self) -> None:
        """Pause what moves, else play."""
        if self.playing or self.following:
            self.pause()
        else:
            self.play()

    def follow(self) -> None:
        """Go to the end and stay there while the run grows."""
        self.following = True
        self.playing = False
        self._put(self.head)

    def seek(self, position: int) -> None:
        """Go to a position, or the nearest there is; ends following."""
        self.following = False
        self._put(position)

    def seek_time(self, t_ns: float) -> None:
        """Go to the last step that had ended at a time."""
        if not self.empty:
            self.seek(self.steps.position_at(t_ns))

    def step(self, count: int) -> None:
        """Pause, and move by so many steps."""
        self.pause()
        self.seek(self.position + count)

    def seek_share(self, share: float) -> None:
        """Go to a share of the run, 0 to 1, counted in steps."""
        self.seek(self.steps.first + round(min(max(share, 0.0), 1.0) * max(len(self.steps) - 1, 0)))

    def faster(self, notches: int = 1) -> None:
        """Choose the next higher speed, or lower with a negative number."""
        at = SPEEDS.index(self.speed) + notches
        self.speed = SPEEDS[min(max(at, 0), len(SPEEDS) - 1)]

    def zoom_out(self, notches: int = 1) -> None:
        """Put twice as many steps into a column, or half as many with a negative number."""
        self.zoom = min(max(self.zoom + notches, 0), MAX_ZOOM)

    def mark(self) -> None:
        """Mark the position of the cursor, or remove the mark that is there."""
        if self.position in self.marks:
            self.marks.remove(self.position)
        else:
            self.marks = sorted([*self.marks, self.position])

    def next_mark(self, forward: bool = True) -> bool:
        """Go to the next mark, around the end; whether there is one."""
        if not self.marks:
            return False
        here = self.position
        ahead = [m for m in self.marks if (m > here if forward else m < here)]
        around = self.marks[0] if forward else self.marks[-1]
        self.seek((ahead[0] if forward else ahead[-1]) if ahead else around)
        return True

    def cycle_loop(self) -> str:
        """Set the start of a loop, then its end, then remove it; says which of them it did."""
        if self.loop is not None:
            self.loop = None
            return "loop removed"
        if self._loop_start is None:
            self._loop_start = self.position
            return f"loop starts at step {self.position:,}; once more sets its end"
        ends = sorted((self._loop_start, self.position))
        self.loop, self._loop_start = (ends[0], max(ends[1], ends[0] + 1)), None
        return f"loop over steps {self.loop[0]:,} to {self.loop[1]:,}"

    def go_to_replica(self, replica: int) -> None:
        """Look at another replica, at the same time of the run."""
        t_ns = self.t_ns
        self.replica = replica % len(self.store.replicas)
        if not self.empty:
            self._put(self.steps.position_at(t_ns))

    def _put(self, position: int) -> None:
        if self.empty:
            self._position = 0
            return
        self._position = min(max(position, self.steps.first), self.head)
        self._t_ns = float(self.steps.at(self._position)["end_ns"])

    def _play(self, seconds: float) -> None:
        start, last = self._bounds()
        here = self.position
        if here >= last:
            if self.loop is not None:
                self._put(start)
            elif self.store.status != "running":
                self.playing = False
            return
        if self.speed == MAX:
            self._put(here + max(round(len(self.steps) * seconds / _MAX_RUN_S), 1))
        else:
            t_ns = self._t_ns + seconds * self.speed * _NS_PER_S
            self._position = min(self.steps.position_at(t_ns), last)
            self._t_ns = t_ns

    def _bounds(self) -> tuple[int, int]:
        if self.loop is None:
            return self.steps.first, self.head
        return max(self.loop[0], self.steps.first), min(self.loop[1], self.head)
