"""Drives a scheduler and an executor in real time.

A turn takes in the steps that are done and launches as many as the scheduler allows. With two plans
in flight the next step is planned and its inputs are prepared while the device runs the present
one, so the device never waits for the host unless the host is the slower of the two.

The loop owns no thread and never sleeps: whoever drives it decides how to wait (`turn` tells when
there is nothing to do but wait).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from engine.core.enums import FinishReason, RejectReason
from engine.core.events import EventLog
from engine.core.plan import StepPlan, StepResult
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.nvtx_ranges import annotate
from engine.runtime.executor import (
    Executor,
    ExecutorDiedError,
    RunningStep,
    StepFailedError,
    StepOutput,
)

FAILED = StepResult(failed=True)


class Turn(Enum):
    """What a driver should do after a turn."""

    AGAIN = "again"  # something was done, more may be possible at once
    WAIT = "wait"  # the device is working; nothing to do until its step is done or a request comes
    IDLE = "idle"  # no step is running and none can be planned until a request comes


class TextEnds(Protocol):
    """Says where texts end: stop tokens and strings, or the lengths of a recorded workload."""

    def planned(self, plan: StepPlan) -> None:
        """A plan was made; called before it is launched."""
        ...

    def stopped(self, plan: StepPlan, output: StepOutput) -> Sequence[int]:
        """Ids of the requests whose text ends with the tokens of this step; called once a step.

        `plan.sampling_requests()` lists the rows; a row whose epoch differs from its request's is
        void.
        """
        ...


@dataclass(frozen=True, slots=True)
class LoopEvents:
    """Whom a loop tells what. All are called between steps, in the thread that drives the loop.

    Attributes:
        on_step: (plan, output, now) of every step that succeeded, before it is committed.
        on_end: (request, now) of every request that ended, for whatever reason.
        on_failure: (error) of every step that failed; its requests are computed again.
    """

    on_step: Callable[[StepPlan, StepOutput, int], None] = lambda _plan, _output, _now: None
    on_end: Callable[[Request, int], None] = lambda _request, _now: None
    on_failure: Callable[[Exception], None] = lambda _error: None


class _Launched(NamedTuple):
    """A step in flight; `step` is None if it could not even be launched."""

    plan: StepPlan
    step: RunningStep | None
    plan_ns: int
    host_ns: int


class ServingLoop:
    """Serves one replica.

    Args:
        scheduler: decides.
        executor: does.
        clock: ns since the start of the run, never going back.
        ends: where texts end.
        log: takes one row per step, or None.
        events: whom to tell.
        replica: its number in the tables.

    Attributes:
        steps: how many have succeeded.
        dead: what ended everything, or None.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        clock: Callable[[], int],
        ends: TextEnds,
        log: EventLog | None = None,
        events: LoopEvents | None = None,
        replica: int = 0,
    ) -> None:
        self.scheduler = scheduler
        self.steps = 0
        self.dead: ExecutorDiedError | None = None
        self._executor = executor
        self._clock = clock
        self._ends = ends
        self._log = log
        self._write = log.write("steps") if log is not None else None
        self._events = events or LoopEvents()
        self._replica = replica
        self._launched: deque[_Launched] = deque()

    @property
    def has_work(self) -> bool:
        """Whether a request is alive or a step is running."""
        return bool(self._launched) or self.scheduler.has_work

    @property
    def step_is_done(self) -> bool:
        """Whether the oldest step in flight is done, so that `turn` would commit it at once."""
        if not self._launched:
            return False
        step = self._launched[0].step
        return step is None or step.is_done()

    def add(self, request: Request) -> RejectReason:
        """Take a request in; one that can never be served ends at once.

        Raises:
            ExecutorDiedError: the device is lost.
        """
        if self.dead is not None:
            raise self.dead
        now = self._clock()
        reason = self.scheduler.add(request, now)
        if reason:
            self._events.on_end(request, now)
        return reason

    def abort(self, request_id: int) -> bool:
        """End a request that nobody waits for any more; False if it is not alive."""
        now = self._clock()
        request = self.scheduler.abort(request_id, now)
        if request is not None:
            self._events.on_end(request, now)
        return request is not None

    def turn(self) -> Turn:
        """Commit what is done, launch what can be launched. Never waits for the device.

        Raises:
            ExecutorDiedError: the device is lost. Every request has ended with an error before.
        """
        did = False
        while self.step_is_done:
            self._commit(self._launched.popleft())
            did = True
        while self._may_launch:
            if not self._plan_and_launch():
                break
            did = True
            if self.step_is_done:  # a synchronous executor: commit before planning on
                return Turn.AGAIN
        if did:
            return Turn.AGAIN
        return Turn.WAIT if self._launched else Turn.IDLE

    def commit_oldest(self) -> None:
        """Wait for the oldest step in flight and commit it.

        Raises:
            ExecutorDiedError: as `turn`.
        """
        if self._launched:
            self._commit(self._launched.popleft())

    @property
    def _may_launch(self) -> bool:
        """Whether a further step may be put in flight.

        Not behind one that was never launched: what it should have left on the device, such as new
        pages in the page table, is not there, and a step that follows it would write elsewhere.
        """
        if self._launched and self._launched[-1].step is None:
            return False
        return len(self._launched) < self.scheduler.config.max_plans_in_flight

    def _plan_and_launch(self) -> bool:
        now = self._clock()
        with annotate("plan"):
            plan = self.scheduler.plan(now)
        for request in self.scheduler.take_ended():
            self._events.on_end(request, now)
        if plan is None:
            return False
        plan.decode_members()  # while they are those of this plan
        self._ends.planned(plan)
        step: RunningStep | None = None
        try:
            step = self._executor.launch(plan)
        except StepFailedError as error:
            self._events.on_failure(error)
        except ExecutorDiedError as error:
            self._die(error)
        self._launched.append(_Launched(plan, step, now, self._clock() - now))
        return True

    def _commit(self, launched: _Launched) -> None:
        plan, step = launched.plan, launched.step
        output: StepOutput | None = None
        try:
            output = step.result() if step is not None else None
        except StepFailedError as error:
            self._events.on_failure(error)
        except ExecutorDiedError as error:
            self._die(error)
        now = self._clock()
        with annotate("commit"):
            if output is None:
                ended = self.scheduler.commit(plan.plan_id, FAILED, now)
            else:
                ended = self._commit_output(launched, output, now)
            for request in ended:
                self._events.on_end(request, now)

    def _commit_output(self, launched: _Launched, output: StepOutput, now: int) -> list[Request]:
        plan = launched.plan
        self._events.on_step(plan, output, now)
        stopped, ids = self._ends.stopped(plan, output), output.token_ids.tolist()
        broken: list[int] = []
        if ids and min(ids) < 0:
            rows = zip(plan.sampling_requests(), ids, strict=True)
            broken = [r.request_id for (r, epoch), i in rows if i < 0 and epoch == r.epoch]
        result = StepResult(stopped=stopped, token_ids=ids, broken=broken)
        ended = self.scheduler.commit(plan.plan_id, result, now)
        self._record(launched, output, now)
        return ended

    def _die(self, error: ExecutorDiedError) -> None:
        """Nothing works any more: end every request, then raise."""
        self.dead = error
        now = self._clock()
        book = self.scheduler.book
        for request in list(book.requests.values()):
            book.finish(request, FinishReason.ERROR, now)
            self._events.on_end(request, now)
        self._launched.clear()
        raise error

    def _record(self, launched: _Launched, output: StepOutput, end_ns: int) -> None:
        """Write the row of one step."""
        self.steps += 1
        if self._write is None:
            return
        p, host_ns = launched.plan, launched.host_ns + self._clock() - end_ns
        if output.in_launch:  # what the host did as the device is not its time beside it
            host_ns = max(0, host_ns - output.gpu_ns)
        start_ns = min(max(output.start_ns, launched.plan_ns), end_ns)
        self._write((
            p.plan_id, self._replica, launched.plan_ns, start_ns, end_ns, output.gpu_ns, host_ns,
            p.prefill_tokens, len(p.prefills), p.prefill_context, p.prefill_pairs,
            p.prefill_max_context,
            p.decode_requests, p.decode_tokens, p.decode_context, p.decode_max_context,
            p.shared_context, p.sampled_tokens, p.hit_tokens, p.graph_batch, p.running, p.waiting,
            p.block_reason,
            p.free_pages, p.cached_pages, p.retracted, p.evicted_pages, p.decode_iteration, 0,
        ))  # fmt: skip
        if self._log is not None and self.steps % 256 == 0:
            self._log.flush_if_full()
