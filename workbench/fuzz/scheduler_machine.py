"""A scheduler, its device and its links, driven in any order that a driver could choose."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from engine.core.config import UNCHANGEABLE
from engine.core.enums import RequestStatus
from engine.core.errors import PlanOrderError
from engine.core.events import Detail, EventLog
from engine.core.journal import Journal, read_calls, replay
from engine.core.plan import OK, StepPlan, StepResult
from engine.core.scheduler import Scheduler
from workbench.fuzz.draws import chance
from workbench.fuzz.hog import Hog
from workbench.fuzz.machine import Machine, Operation, Weights
from workbench.fuzz.plan_laws import PLAN_LAWS
from workbench.fuzz.record_laws import check_record
from workbench.fuzz.rig import Rig, require
from workbench.fuzz.scheduler_marks import MARKS, marks_of_ends, marks_of_events, marks_of_plan
from workbench.fuzz.scheduler_setup import (
    FAULTS,
    IN_RUN,
    Setup,
    decode,
    draw_setup,
    encode,
    needed,
    simpler,
)
from workbench.fuzz.tiny import TICK_NS, random_config


class SchedulerTrial:
    """Drives a rig by operations."""

    def __init__(self, seed: int, setup: Setup, log: EventLog | None = None) -> None:
        self.marks: set[str] = set()
        self._seed, self._setup = seed, setup
        rates = setup.rates
        self._log = log or (EventLog(Detail.PAGES) if setup.recorded else None)
        self._journal = Journal() if setup.recorded else None
        self.rig = Rig(
            seed, setup.config, laws=(*PLAN_LAWS, self._note), log=self._log, journal=self._journal,
            transfer_faults="transfer" in rates, nan_rate=rates.get("nan", 0.0) / 8,
            every=setup.every,
        )  # fmt: skip
        self._hog = Hog(self.rig)
        self._sent: set[int] = set()
        self._asks = {ask.request_id: ask for ask in setup.asks}
        self._unsent = [ask.request_id for ask in setup.asks]
        base = {"send": 0.15, "plan": 0.45, "compute": 0.1, "commit": setup.pace, "arrive": 0.08}
        if "handoff" not in rates:
            del base["arrive"]
        self._weights = Weights(base | {k: v for k, v in rates.items() if k in IN_RUN})
        self._calls: dict[str, Callable[..., None]] = {
            "send": self._send, "plan": self._plan, "compute": self._compute,
            "commit": self._commit, "arrive": self._arrive, "abort": self._abort,
            "half": self._half, "storm": self._storm, "fail": self._fail,
            "wrong_order": self._wrong_order, "misfit": self._misfit, "twice": self._twice,
            "starve": self._starve, "shrink": self._shrink, "restore": self._restore,
            "flush": self._flush, "reconfigure": self._reconfigure, "leap": self._leap,
        }  # fmt: skip

    @property
    def checks(self) -> int:
        return self.rig.events

    def choose(self, rng: random.Random) -> Operation:
        name = self._weights.draw(rng)
        config, alive = self.rig.config, len(self.rig.scheduler.book.requests)
        if self._unsent and alive < config.max_running_requests and rng.random() < 0.2:
            name = "send"
        if name == "send" and self._unsent:
            return name, self._unsent[0]
        if name in ("send", "plan", "commit", "arrive", "fail"):
            flying, depth = len(self.rig.device.in_flight), config.max_plans_in_flight
            if name == "arrive" and self.rig.links.trips:
                return name, rng.getrandbits(8)
            if name == "fail" and flying < depth:
                return (name,)
            return ("commit",) if flying and (name == "commit" or flying >= depth) else ("plan",)
        if name == "shrink" and self._hog.holds and rng.random() < 0.6:
            return ("restore",)
        return name, rng.getrandbits(16)

    def apply(self, operation: Operation) -> None:
        self.rig.now += TICK_NS
        name, *numbers = operation
        self._calls[name](*numbers)

    def finish(self) -> None:
        rig, scheduler = self.rig, self.rig.scheduler
        rig.device.nan_rate = 0.0
        self._hog.let_go()
        most = 100 + 8 * sum(len(a.prompt) + a.max_tokens for a in rig.asks.values())
        for _ in range(most):
            if not scheduler.has_work:
                break
            rig.now += TICK_NS
            self._go_on()
        alive = list(scheduler.book.requests.values())
        require(not alive, f"when faults stop, all ends within {most} steps", *alive)
        rig.quiesce()
        rig.check_ends()
        self.marks |= marks_of_ends(rig)
        if self._log is not None:
            self.marks |= {"recorded"} | marks_of_events(self._log)
            check_record(rig, plans_were_lost="starve" in self._setup.rates)
            self._replay()
        self.marks |= rig.links.marks | rig.marks

    def write_unfinished(self) -> None:
        self.rig.scheduler.book.write_unfinished()

    def _go_on(self) -> None:
        """One step of a driver without faults."""
        rig = self.rig
        if rig.links.trips:
            trip = rig.links.trips[0]
            if trip.status is None:
                rig.now = max(rig.now, trip.transfer.deadline_ns)
            rig.finish_transfer(0)
        if len(rig.device.in_flight) < rig.config.max_plans_in_flight and rig.plan() is not None:
            return
        if rig.device.in_flight:
            rig.commit()

    def _replay(self) -> None:
        """The journal, told to a fresh scheduler, gives the same plans."""
        if self._journal is None or self._hog.was_used or "flush" in self._setup.rates:
            return  # a journal holds the calls of the scheduler only
        fresh = Scheduler(self.rig.first_config)
        calls = read_calls(self._journal.to_array())
        replay(calls, fresh, lambda request_id: self._asks[request_id].buffer())
        self.marks.add("replayed")

    def _send(self, request_id: int) -> None:
        ask = self._asks.get(request_id)
        if ask is None or request_id in self._sent:
            return
        self._sent.add(request_id)
        self._unsent = [i for i in self._unsent if i != request_id]
        self.rig.send(ask)

    def _plan(self, fails: bool = False) -> None:
        rig = self.rig
        if len(rig.device.in_flight) < rig.config.max_plans_in_flight:
            with self._hog.armed():
                rig.plan(fails)
            return
        try:
            rig.scheduler.plan(rig.now)
        except PlanOrderError:
            rig.check()
            return
        require(False, "no more plans are in flight than allowed")

    def _fail(self) -> None:
        if len(self.rig.device.in_flight) < self.rig.config.max_plans_in_flight:
            self.marks.add("fault fail")
            self._plan(fails=True)

    def _compute(self, count: int) -> None:
        self.rig.device.run_some(1 + count % 4)

    def _commit(self) -> None:
        if self.rig.device.in_flight:
            self.rig.commit()

    def _arrive(self, choice: int) -> None:
        if self.rig.links.trips:
            self.rig.finish_transfer(choice)

    def _abort(self, choice: int) -> None:
        """One of the requests that were ever sent gives up, most often one that is alive."""
        book = self.rig.scheduler.book
        among = list(book.requests) if choice & 7 else list(self.rig.requests)
        if among:
            self._give_up(among[(choice >> 3) % len(among)])

    def _half(self, choice: int) -> None:
        """Somebody gives up between two chunks of a prompt."""
        among = list(self.rig.scheduler.book.prefilling)
        if among:
            self.marks.add("fault half")
            self._give_up(among[choice % len(among)])

    def _storm(self, choice: int) -> None:
        """Half to nearly all of those alive give up at once."""
        share = (0.5, 0.7, 0.9)[choice % 3]
        for request_id in list(self.rig.scheduler.book.requests):
            if chance(share, self._seed, choice, request_id):
                self.marks.add("fault storm")
                self._give_up(request_id)

    def _give_up(self, request_id: int) -> None:
        self.marks.add("fault abort")
        request = self.rig.requests[request_id]
        if request.status in (RequestStatus.PREFILLING, RequestStatus.DECODING):
            self.marks.add("aborted in flight")
        self.rig.abort(request_id)

    def _wrong_order(self, choice: int) -> None:
        """A result is told twice, or before an older one: refused, and nothing changes."""
        rig = self.rig
        plans = [launched.plan.plan_id for launched in rig.device.in_flight]
        wrong = [*plans[1:], plans[0] - 1 if plans else rig.scheduler.next_plan_id - 1]
        self._refused(PlanOrderError, wrong[choice % len(wrong)], OK)
        self.marks.add("fault wrong_order")

    def _misfit(self, choice: int) -> None:
        """A result has more or fewer rows than its plan: refused, and nothing changes."""
        if not self.rig.device.in_flight:
            return
        plan = self.rig.device.in_flight[0].plan
        rows = len(plan.sampling_requests())
        ids = [0] * (rows + 1 if choice & 1 else rows - 1 if rows else 1)
        self._refused(ValueError, plan.plan_id, StepResult(token_ids=ids, verified=[0] * 9))
        self.marks.add("fault misfit")

    def _refused(self, error: type[Exception], plan_id: int, result: StepResult) -> None:
        scheduler = self.rig.scheduler
        before = self._print()
        try:
            scheduler.commit(plan_id, result, self.rig.now)
        except error:
            require(before == self._print(), "what is refused changes nothing")
            self.rig.check()
            return
        require(False, f"a wrong result is refused with {error.__name__}", plan_id)

    def _print(self) -> object:
        """What a refused call must not touch."""
        scheduler = self.rig.scheduler
        texts = [len(r.tokens) for r in scheduler.book.requests.values()]  # type: ignore[arg-type]
        plans = [plan.plan_id for plan in scheduler.in_flight]
        return plans, scheduler.kv.pool.free_list(), scheduler.kv.held_pages, texts

    def _twice(self, choice: int) -> None:
        """A request comes with an id that is in use: refused, and nothing changes."""
        alive = list(self.rig.scheduler.book.requests)
        if not alive:
            return
        before = self._print()
        try:
            self.rig.scheduler.add(self._asks[alive[choice % len(alive)]].request(), self.rig.now)
        except ValueError:
            require(before == self._print(), "what is refused changes nothing")
            self.rig.check()
            self.marks.add("fault twice")
            return
        require(False, "an id that is in use is refused")

    def _starve(self, choice: int) -> None:
        """From the n-th time on that the next plans ask for pages, there are none."""
        self._hog.fail_at(1 + choice % 12)
        self.marks.add("fault starve")

    def _shrink(self, choice: int) -> None:
        self._hog.take(1 + choice % 8)
        self.rig.check()
        self.marks.add("fault shrink")

    def _restore(self) -> None:
        self._hog.let_go()
        self.rig.check()

    def _flush(self, choice: int) -> None:
        """Everything that is cached and not in use goes, or part of it."""
        kv = self.rig.scheduler.kv
        if kv.cached_pages:
            kv.evict(kv.cached_pages if choice & 1 else 1 + choice % kv.cached_pages)
            self.rig.check()
            self.marks.add("fault flush")

    def _reconfigure(self, choice: int) -> None:
        """All settings that may change do; or a half-done prompt must be whole and just fits."""
        config = self.rig.config
        kept = {name: getattr(config, name) for name in UNCHANGEABLE}
        rng = random.Random(choice)  # noqa: S311 - a seed, no secret
        other = random_config(rng, **kept)
        half_done = [r.prefill_left for r in self.rig.scheduler.book.prefilling.values()]
        if half_done and choice & 1:
            rows = config.max_running_requests * (1 + config.num_speculative_tokens)
            least = max(half_done[0], rows)
            other = replace(
                config, chunked_prefill=False, max_prefill_tokens=None, max_num_batched_tokens=least
            )
        if self.rig.reconfigure(other):
            self.marks.add("fault reconfigure")

    def _leap(self, choice: int) -> None:
        """Time passes, perhaps up to a deadline or just beyond."""
        due = self.rig.scheduler.next_wakeup()
        ahead = choice % 50 * TICK_NS
        if due is not None and not choice & 1:
            ahead = due - self.rig.now + choice % 3 - 1
        self.rig.now += max(0, ahead)
        self.marks.add("fault leap")

    def _note(self, rig: Rig, plan: StepPlan) -> None:
        """Called as a law of each plan."""
        self.marks |= marks_of_plan(rig, plan)


MACHINE: Final = Machine(
    name="scheduler",
    faults=FAULTS,
    marks=MARKS,
    takes=dict.fromkeys(IN_RUN | {"send", "compute", "arrive"}, 1)
    | dict.fromkeys(("plan", "commit", "fail", "restore"), 0),
    operations=(20, 200),
    is_system=False,
    draw=draw_setup,
    open=SchedulerTrial,
    encode=encode,
    decode=decode,
    needed=needed,
    simpler=simpler,
)
