"""Serves a workload in real time: clients, one serving loop, and a clock on the wall.

One thread does everything. Clients act as soon as they are due, also while the device works on a
step; between events it polls for short waits and sleeps through long ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from engine.core.config import SchedulerConfig
from engine.core.enums import FinishReason
from engine.core.events import EventLog
from engine.core.journal import Journal
from engine.core.plan import StepPlan
from engine.core.request import Request
from engine.core.results import MAX_FAILURES
from engine.core.scheduler import Scheduler
from engine.core.token_ids import TokenSource
from engine.core.workload import Workload
from engine.native.cache_choice import inject
from engine.runtime.executor import Executor, StepOutput
from engine.runtime.serving_loop import LoopEvents, ServingLoop, Turn
from simulator.behaviour import OutputLengths
from simulator.client import Clients
from simulator.clock import FOREVER
from simulator.world import Outcome, Progress, unsent_row

_HEARTBEAT_NS: Final = 50_000_000  # how often progress is told and a stop is noticed
_SPIN_NS: Final = 20_000_000  # a wait for a step is polled without a pause for so long
_NAP_SHARE: Final = 256  # then in pauses of this part of the time waited, so 0.4 % late at most
_LONGEST_NAP_NS: Final = 1_000_000


class WallClock(Protocol):
    """Where the driver's time comes from."""

    def __call__(self) -> int:
        """ns since `restart`, never going back."""
        ...

    def restart(self) -> None:
        """Now is 0."""
        ...

    def sleep(self, duration_ns: int) -> None:
        """Let others work for so long; 0 only gives way."""
        ...


class HostClock:
    """The monotonic clock of this machine."""

    def __init__(self) -> None:
        self._start_ns = time.perf_counter_ns()

    def __call__(self) -> int:
        return time.perf_counter_ns() - self._start_ns

    def restart(self) -> None:
        self._start_ns = time.perf_counter_ns()

    def sleep(self, duration_ns: int) -> None:
        time.sleep(duration_ns / 1e9)


class RecordedEnds:
    """Ends texts where the workload says; what the model would rather do is ignored."""

    def __init__(self, workload: Workload, scheduler: Scheduler) -> None:
        self._lengths = OutputLengths(workload)
        self._book = scheduler.book

    def planned(self, plan: StepPlan) -> None:
        if self._lengths.active:
            self._lengths.planned(plan, self._book)

    def stopped(self, plan: StepPlan, output: StepOutput) -> Sequence[int]:  # noqa: ARG002
        return self._lengths.stopped(plan) if self._lengths.active else ()


class StuckError(RuntimeError):
    """Requests are alive, nothing runs and nothing can be planned: a defect of the scheduler."""


class Driver:
    """Serves a workload on one executor.

    Args:
        workload: what is asked.
        config: how it is scheduled.
        executor: does it.
        clock: the executor's too.
        tokens_of: the ids of a request's prompt, when it is sent.
        max_concurrency: the clients' own cap, or None.
        log: takes the events.
        journal: takes the inputs of the scheduler, or None.

    Attributes:
        failed_steps: what failing steps said -> how many said so.
        failed_requests: requests that ended with an error because their steps failed.
        broken_requests: those whose logits were not numbers.
        lost_requests: those that were there when the device was lost.
    """

    def __init__(
        self,
        workload: Workload,
        config: SchedulerConfig,
        executor: Executor,
        clock: WallClock,
        tokens_of: Callable[[int], TokenSource],
        *,
        max_concurrency: int | None = None,
        log: EventLog | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.failed_steps: dict[str, int] = {}
        self.failed_requests = 0
        self.broken_requests = 0
        self.lost_requests = 0
        self._without_token: set[int] = set()
        self._workload = workload
        self._clock = clock
        self._log = log if log is not None else EventLog()
        scheduler = Scheduler(config, self._log, journal=journal)
        inject(scheduler, "engine")
        self._scheduler = scheduler
        self._loop = ServingLoop(
            scheduler,
            executor,
            clock,
            RecordedEnds(workload, scheduler),
            self._log,
            LoopEvents(self._step_done, self._request_ended, self._step_failed),
        )
        self._clients = Clients(
            workload, max_concurrency, tokens_of, send=self._send, give_up=self._give_up
        )
        self._ended = 0
        self._next_beat_ns = 0
        self._waiting_since_ns: int | None = None

    def run(
        self,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> Outcome:
        """Serve until every request has ended, or until `should_stop` says so.

        The clock starts with the call. Call `close` afterwards, whatever happened.

        Raises:
            ExecutorDiedError: the device is lost. Every request that was sent has ended.
            StuckError: see there.
        """
        self._clock.restart()
        clients, loop = self._clients, self._loop
        while clients.due_ns < FOREVER or loop.has_work:
            now = self._clock()
            if now >= self._next_beat_ns:
                self._next_beat_ns = now + _HEARTBEAT_NS
                on_progress(self.progress())
                if should_stop():
                    return Outcome.STOPPED
            self._let_clients_act(now)
            turn = loop.turn()
            if turn is Turn.WAIT:
                self._await_step()
                continue
            self._waiting_since_ns = None
            if turn is Turn.IDLE:
                self._await_client()
        on_progress(self.progress())
        return Outcome.COMPLETE

    def close(self) -> None:
        """Write the rows of requests that have not ended."""
        self._scheduler.book.write_unfinished()
        write = self._log.write("requests")
        if write is not None:
            for request_id in self._clients.never_sent():
                write(unsent_row(self._workload, request_id))

    def progress(self) -> Progress:
        """Where the run is."""
        return Progress(
            self._clock(), self._clients.sent, self._ended, len(self._workload), self._loop.steps
        )

    def _let_clients_act(self, now: int) -> None:
        """Let clients act at the very times at which they wanted to, although it is later now."""
        clients = self._clients
        while clients.due_ns <= now:
            clients.act(clients.due_ns)

    def _await_step(self) -> None:
        """Pass the time until the oldest step is done, a client is due, or it is time to beat."""
        clock, loop = self._clock, self._loop
        if self._waiting_since_ns is None:
            self._waiting_since_ns = clock()
        until = min(self._clients.due_ns, self._next_beat_ns)
        while not loop.step_is_done:
            now = clock()
            if now >= until:
                return
            waited = now - self._waiting_since_ns
            nap = 0 if waited < _SPIN_NS else min(waited // _NAP_SHARE, _LONGEST_NAP_NS)
            clock.sleep(min(nap, until - now))

    def _await_client(self) -> None:
        """Sleep until a client is due or it is time to beat."""
        due = self._clients.due_ns
        if due == FOREVER and self._loop.has_work:
            raise StuckError(
                f"{len(self._scheduler.book.requests)} requests are alive, nothing runs and "
                "nothing can be planned"
            )
        wait = min(due, self._next_beat_ns) - self._clock()
        if due < FOREVER and wait > 0:
            self._clock.sleep(wait)

    def _send(self, request: Request, due_ns: int) -> None:
        self._loop.add(request)
        # The client waits from then on, even if a long launch has kept the driver from noticing.
        request.arrival_ns = due_ns

    def _give_up(self, request_id: int, _: int) -> None:
        self._loop.abort(request_id)

    def _step_done(self, plan: StepPlan, output: StepOutput, _: int) -> None:
        ids = output.token_ids
        if ids.size and ids.min() < 0:
            rows = zip(plan.sampling_requests(), ids.tolist(), strict=True)
            self._without_token.update(row[0].request_id for row, token in rows if token < 0)

    def _request_ended(self, request: Request, now: int) -> None:
        self._ended += 1
        if request.finish_reason == FinishReason.ERROR:
            if request.failures >= MAX_FAILURES:
                self.failed_requests += 1
            elif request.request_id in self._without_token:
                self.broken_requests += 1
            else:
                self.lost_requests += 1
        self._clients.ended(request, now)

    def _step_failed(self, error: Exception) -> None:
        text = str(error)
        self.failed_steps[text] = self.failed_steps.get(text, 0) + 1
