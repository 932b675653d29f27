"""The scheduler: which request computes how many tokens in the next step.

Sans-IO. A driver calls `add`, `abort`, `plan`, `commit`, `transfer_done` with the time in ns and
does what the plans say. The rules, in one place:

* One token budget per step covers decodes (or verify items) first and prefill chunks with what is
  left; in `prefill_first` mode decodes wait while there is anything to prefill.
* A request that can never fit is rejected by `add`. Admission estimates future memory; when pages
  run out all the same, running requests are retracted, cheapest to recompute first, never the
  oldest. So the oldest always finishes, and every request that fits the pool does in the end.
* Several plans may be in flight. They come back in order; a result for a request that has left
  since is void, and pages a plan may touch become free only when it is back. Retraction waits
  until nothing is in flight.
* The scheduler knows max_tokens, never where a text really ends.
"""

from __future__ import annotations

from engine.core.admission import NewTokenRatio
from engine.core.config import UNCHANGEABLE, SchedulerConfig
from engine.core.enums import (
    AdmissionBlock,
    FinishReason,
    RejectReason,
    RetractReason,
    TransferStatus,
)
from engine.core.errors import PlanOrderError
from engine.core.events import EventLog
from engine.core.fast_forward import FastForward, PagesAfter
from engine.core.handoff import Handoff
from engine.core.journal import Journal
from engine.core.memory_policy import MemoryPolicy
from engine.core.plan import StepPlan, StepResult
from engine.core.planner import Planner
from engine.core.request import Request
from engine.core.results import Results
from engine.core.scheduler_state import SchedulerState


class Scheduler:
    """Schedules one replica; the module docstring has the rules, `plan.py` the results.

    Attributes:
        book: its requests and where each one is.
        kv: its pages and prefix cache.
        transfers: open KV transfers.
        in_flight: plans not committed, oldest first.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        events: EventLog | None = None,
        replica: int = 0,
        journal: Journal | None = None,
    ) -> None:
        self._state = state = SchedulerState(config, events, replica)
        self.book, self.kv = state.book, state.kv
        self.transfers, self.in_flight = state.transfers, state.in_flight
        self._memory = MemoryPolicy(state)
        self._handoff = Handoff(state, self._memory)
        self._planner = Planner(state, self._memory, self._handoff, events)
        self._results = Results(state, self._handoff)
        self._fast_forward = FastForward(state)
        self._journal = journal

    @property
    def config(self) -> SchedulerConfig:
        """The settings in force."""
        return self._state.config

    @property
    def next_plan_id(self) -> int:
        """Id of the plan to come."""
        return self._state.next_plan_id

    def add(self, request: Request, now: int) -> RejectReason:
        """Take a request in, or reject it for good if it can never be served.

        Raises:
            ValueError: its id is in use.
        """
        if request.request_id in self.book.requests:
            raise ValueError(f"request id {request.request_id} is in use")
        if self._journal is not None:
            self._journal.add(request, now)
        reason = self._memory.why_never(request)
        if reason:
            self.book.reject(request, reason, now)
            return reason
        if not self.book.requests:
            self._state.ratio.restart(self.book.batch.iteration)
        self.book.arrive(request, now)
        return reason

    def abort(self, request_id: int, now: int) -> Request | None:
        """The client gave up. Returns the request, or None if it is not alive (any more)."""
        if self._journal is not None:
            self._journal.abort(request_id, now)
        request = self.book.requests.get(request_id)
        if request is not None:
            self.book.finish(request, FinishReason.ABORT, now)
        return request

    def transfer_done(self, transfer_id: int, status: TransferStatus, now: int) -> Request | None:
        """A KV transfer ended. Late and repeated notices are ignored; returns an ended request."""
        if self._journal is not None:
            self._journal.transfer_done(transfer_id, status, now)
        return self._handoff.end_transfer(transfer_id, status, now)

    def take_ended(self) -> list[Request]:
        """Requests that ended inside `plan`, because their KV was not sent in time; each once."""
        ended = self._state.ended
        if ended:
            self._state.ended = []
        return ended

    def next_wakeup(self) -> int | None:
        """When to call `plan` although nothing arrives: the earliest transfer deadline, in ns."""
        return self.transfers.next_deadline()

    @property
    def has_work(self) -> bool:
        """Whether any request is alive here."""
        return bool(self.book.requests)

    def reconfigure(self, config: SchedulerConfig, now: int) -> None:
        """Go on with other settings. Pages, the queue and running requests stay.

        Plans in flight stay as they are. Under a lower `max_running_requests` requests above it are
        retracted at once, cheapest to recompute first, never the oldest.

        Raises:
            ValueError: a setting in `UNCHANGEABLE` would change, or more requests await their KV
                than may run.
        """
        fixed = [n for n in UNCHANGEABLE if getattr(config, n) != getattr(self._state.config, n)]
        if fixed:
            raise ValueError(f"{', '.join(fixed)} cannot change while the scheduler runs")
        book, before = self.book, self._state.config
        least = len(book.awaiting) + (book.running > len(book.awaiting))
        if book.awaiting and least > config.max_running_requests:
            raise ValueError(f"max_running_requests must be at least {least} while KV is awaited")
        if self._journal is not None:
            self._journal.reconfigure(config, now)
        self._state.configure(config)
        if config.schedule_conservativeness != before.schedule_conservativeness:
            self._state.ratio = NewTokenRatio(
                config.schedule_conservativeness, book.batch.iteration
            )
        if config.policy != before.policy:
            book.reorder(config.policy)
        while book.running > config.max_running_requests and (
            victim := self._memory.cheapest_running()
        ):
            book.retract(victim, RetractReason.RUNNING_LIMIT, now)

    def plan(self, now: int) -> StepPlan | None:
        """Decide the next step, or None: nothing to run, or results must come back first.

        Ask `take_ended` afterwards if KV is sent from here.

        Raises:
            PlanOrderError: `max_plans_in_flight` plans are in flight.
        """
        if len(self.in_flight) >= self._state.config.max_plans_in_flight:
            raise PlanOrderError(f"{len(self.in_flight)} plans are in flight already")
        self._state.memory_ran_out = False
        plan = self._planner.plan(now)
        if self._journal is not None:
            self._journal.plan(plan, now)
        return plan

    def commit(self, plan_id: int, result: StepResult, now: int) -> list[Request]:
        """Take in what a step brought; returns the requests that ended with it.

        Raises:
            PlanOrderError: `plan_id` is not the oldest plan in flight.
            ValueError: `result` does not fit the plan; nothing has changed.
        """
        if not self.in_flight or self.in_flight[0].plan_id != plan_id:
            expected = self.in_flight[0].plan_id if self.in_flight else None
            raise PlanOrderError(
                f"plan {plan_id} committed, but the oldest in flight is {expected}"
            )
        plan = self.in_flight[0]
        if result.token_ids is not None or plan.verifies or result.verified:
            self._results.check(plan, result)
        if self._journal is not None:
            self._journal.commit(plan_id, result, now)
        if result.token_ids is not None and not result.failed:
            self._results.append_tokens(plan, result)
        self.in_flight.popleft()
        self.book.oldest_in_flight = self.in_flight[0].plan_id if self.in_flight else None
        ended = self._results.take(plan, result, now)
        if self.kv.has_deferred:
            self.kv.plan_done(plan_id)
        state = self._state
        state.commits += 1
        if state.config.check_every and state.commits % state.config.check_every == 0:
            from engine.core.invariants import check

            check(self)
        return ended

    def graph_batch(self, num_requests: int) -> int:
        """The CUDA Graph bucket of a pure decode step, 0 if it is too large for all of them."""
        return self._state.graph_batch(num_requests)

    def stable_steps(self, limit: int) -> int:
        """How many further steps, at most `limit`, would be this very decode batch again.

        Holds as long as nobody calls `add`, `abort` or `transfer_done` and no text ends by itself.
        0 whenever that is not certain. Ask when a plan could be made.
        """
        return self._fast_forward.stable_steps(limit)

    def stable_block_reason(self) -> AdmissionBlock:
        """Why the queue waits through the steps that `stable_steps` promises."""
        return self._fast_forward.stable_block_reason()

    def advance(self, steps: int, now: int) -> PagesAfter:
        """Do `steps` cycles of plan and commit at once, with no text ending in any of them.

        Equal in every respect to making the calls one by one; costs O(pages allocated). The plans
        in flight are the newest afterwards: their ids and contexts move on by `steps`.

        Args:
            steps: at most `stable_steps()`.
            now: time of the last of these commits, in ns.

        Returns:
            pages after each of the `steps` plans.
        """
        if self._journal is not None:
            self._journal.advance(steps, now)
        return self._fast_forward.advance(steps)
