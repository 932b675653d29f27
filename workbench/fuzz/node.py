"""One replica of a deployment under test: a rig in virtual time that may crash, hang or crawl."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from engine.core.config import SchedulerConfig
from engine.core.enums import RequestStatus
from engine.core.events import EventLog
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from simulator.clock import FOREVER
from workbench.fuzz.draws import draw
from workbench.fuzz.fake_model import Ask
from workbench.fuzz.hog import Hog
from workbench.fuzz.plan_laws import PLAN_LAWS
from workbench.fuzz.rig import Rig, require
from workbench.fuzz.tiny import TICK_NS

_AVOIDED: Final = 1 << 40  # load of a replica that nobody should be sent to


@dataclass
class Weather:
    """What goes wrong with the steps of a replica for now.

    Attributes:
        slow: factor on the time of a step.
        late: how many of the next results arrive late.
        fails: how many of the next steps fail.
    """

    slow: int = 1
    late: int = 0
    fails: int = 0


@dataclass
class Node:
    """A replica: alive, hanging or down.

    Attributes:
        index: its number.
        incarnation: how often it has been started.
        alarm_ns: when it will act next, as far as anybody has asked.
        hangs_until: it does nothing before, and whatever was told to it meanwhile happens then.
        unheard: aborts that came while it hung.
        on_tokens: told after each commit of each request with new tokens.
    """

    seed: int
    index: int
    config: SchedulerConfig
    every: int
    log: EventLog | None
    on_tokens: Callable[[Node, Request], None]
    incarnation: int = 0
    is_up: bool = True
    alarm_ns: int = FOREVER
    hangs_until: int = 0
    weather: Weather = field(default_factory=Weather)
    marks: set[str] = field(default_factory=set)
    checks: int = 0
    unheard: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        own = draw(self.seed, self.index, self.incarnation)
        self.rig = Rig(
            own, self.config, laws=PLAN_LAWS, log=self.log, every=self.every, replica=self.index
        )
        self.hog = Hog(self.rig)
        self._done: deque[int] = deque()  # when each step in flight is done
        self._own = own

    @property
    def scheduler(self) -> Scheduler:
        """Of the present incarnation; the router looks at it."""
        return self.rig.scheduler

    @property
    def live_requests(self) -> int:
        """Load, as the router sees it."""
        return len(self.scheduler.book.requests) if self.is_up else _AVOIDED

    def crash(self) -> None:
        """Everything that it knew is gone; it is down until `restart`."""
        self.rig.recount()
        self.checks += self.rig.events
        self.is_up = False
        self.hangs_until = 0
        self.unheard.clear()
        self._done.clear()

    def restart(self) -> None:
        """Up again, cold."""
        self.incarnation += 1
        self.config = self.rig.config
        self._start()
        self.is_up = True

    def send(self, ask: Ask, now: int) -> bool:
        """Take a request in; False if it can never be served."""
        self.rig.now = max(self.rig.now, now)
        self.rig.send(ask)
        return not self.rig.never[ask.request_id]

    def abort(self, request_id: int, now: int) -> None:
        """Nobody waits for this request any more; a replica that hangs hears of it afterwards."""
        if now < self.hangs_until:
            self.unheard.append(request_id)
            return
        self.rig.now = max(self.rig.now, now)
        if request_id in self.rig.requests:
            self.rig.abort(request_id)

    def turn(self, now: int) -> int | None:
        """Take in what is done, plan what can be planned; when to act next, or None."""
        rig, done = self.rig, self._done
        rig.now = max(rig.now, now)
        while done and done[0] <= now:
            done.popleft()
            self._commit()
        while self.unheard:
            self.abort(self.unheard.pop(0), now)
        while len(done) < rig.config.max_plans_in_flight:
            fails = self.weather.fails > 0
            plan = rig.plan(fails)
            if plan is None:
                break
            if fails:
                self.weather.fails -= 1
                self.marks.add("fault fail")
            done.append(max(now, done[-1] if done else 0) + self._duration(plan.plan_id))
        if done:
            return done[0]
        return rig.scheduler.next_wakeup()

    def _duration(self, plan_id: int) -> int:
        """How long a step takes; often as long as others, so that much happens at once."""
        luck = draw(self._own, plan_id)
        ticks = (1, 1, 1, 2, 3, 5)[luck % 6] * self.weather.slow
        if self.weather.late:
            self.weather.late -= 1
            self.marks.add("fault late")
            ticks += 20
        if self.weather.slow > 1:
            self.marks.add("fault slow")
        return ticks * TICK_NS

    def _commit(self) -> None:
        rig = self.rig
        launched = rig.device.in_flight[0]
        rows = {row.request.request_id: row.request for row in launched.rows}
        before = {i: request.status for i, request in rows.items()}
        rig.commit()
        for request_id, request in rows.items():
            if (
                rig.requests.get(request_id) is request
                and before[request_id] is not RequestStatus.FINISHED
            ):
                self.on_tokens(self, request)

    def outputs(self, request: Request) -> list[int]:
        """Tokens generated for a request and taken in."""
        count = self.scheduler.book.output_tokens(request)
        tokens = request.tokens
        require(tokens is not None, "a request has ids", request)
        first = request.prompt_tokens
        return [] if tokens is None else tokens.ids(first, first + count).tolist()

    def quiesce(self) -> None:
        """Nothing is alive: nothing may be held."""
        self.rig.quiesce()
        self.rig.check_ends()
        self.checks += self.rig.events
        self.rig.events = 0
