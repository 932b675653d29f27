"""One replica in virtual time: the engine's scheduler, driven by predicted step durations.

The host plans, launches and commits; the GPU runs one step after the other. A plan made at time p
keeps the host until p + host_ns, and runs as soon as enough of it is launched (`simulator.waking`)
and the step before has ended. Results are committed when they are there and the host is free. With
one plan in flight the host works while the GPU waits; with two it plans a step while the GPU runs
the one before.

A replica runs ahead of the clock up to its *horizon*, before which nothing from outside can happen,
so it needs one event per outside influence, not one per step. Runs of identical decode steps are
skipped at once. Neither changes any decision or time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from simpy.events import Event

from engine.core.events import EventLog
from engine.core.fast_forward import PagesAfter
from engine.core.plan import OK, StepPlan, StepResult
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from simulator.behaviour import OutputLengths
from simulator.clock import Clock
from simulator.cost_model import CostModel, StepShape
from simulator.power_state import PowerState
from simulator.waking import Waking

_FLUSH_EVERY = 4096  # steps between looks at the buffers' size
_LONGEST_RUN = 4096  # steps skipped at once
_NEVER_NS = -(1 << 62)  # when a GPU that has run nothing yet had run something last


class _Running(NamedTuple):
    """A step on its way: when it was planned, starts and is known to be done, and its costs."""

    plan: StepPlan
    plan_ns: int
    start_ns: int
    known_ns: int
    gpu_ns: int
    host_ns: int
    extrapolated: bool


class Replica:
    """Drives a scheduler in virtual time.

    Args:
        clock: the world's time.
        index: number of the replica, its rank among equals.
        scheduler: the engine's own.
        cost_model: predicts durations.
        behaviour: says where texts end.
        log: takes one row per step.
        horizon: time before which nothing from outside reaches this replica, in ns.
        on_end: called with a request that ended and the time.
        fast_forward: False goes step by step, for comparison.
    """

    def __init__(
        self,
        clock: Clock,
        index: int,
        scheduler: Scheduler,
        cost_model: CostModel,
        behaviour: OutputLengths,
        log: EventLog,
        horizon: Callable[[], int],
        on_end: Callable[[Request, int], None],
        fast_forward: bool = True,
    ) -> None:
        self.scheduler = scheduler
        self.cost_model = cost_model
        self.index = index
        self.steps = 0
        self.last_commit_ns = 0
        self._clock = clock
        self._behaviour = behaviour
        self._log = log
        self._write = log.write("steps")
        self._horizon = horizon
        self._on_end = on_end
        self._fast_forward = fast_forward
        self._running: deque[_Running] = deque()
        self._host_free_ns = 0
        self._gpu_free_ns = _NEVER_NS
        self._alarm_ns: int | None = None
        self._flush_at = _FLUSH_EVERY
        self._pace_ns = 1_000_000  # GPU time of the last step
        power = cost_model.power
        self._power = PowerState(power) if power is not None else None
        self._waking = Waking(cost_model.wake)
        self._result_ns = self._waking.result_ns

    @property
    def live_requests(self) -> int:
        """Requests that were sent here and have not ended."""
        return len(self.scheduler.book.requests)

    def wake(self, now: int) -> None:
        """Something arrived: act as soon as the host is free."""
        if len(self._running) < self.scheduler.config.max_plans_in_flight:
            self._set_alarm(max(now, self._host_free_ns))

    def _set_alarm(self, time_ns: int) -> None:
        if self._alarm_ns is None or time_ns < self._alarm_ns:
            self._alarm_ns = time_ns
            self._clock.at(time_ns, 1 + self.index, self._on_alarm)

    def _on_alarm(self, _: Event) -> None:
        now = self._clock.now
        if now == self._alarm_ns:
            self._alarm_ns = None
            self._act(now)

    def _act(self, now: int) -> None:
        """Act now, and go on alone for as long as nothing from outside can happen."""
        next_ns = self._turn(now)
        while next_ns is not None and next_ns < self._horizon():
            next_ns = self._turn(next_ns)
        if next_ns is not None:
            self._set_alarm(next_ns)

    def _turn(self, now: int) -> int | None:
        """Commit what is done, plan what can be planned; returns when to act next, or None."""
        running, scheduler = self._running, self.scheduler
        room = self._commit_done(now)
        if room > 0:
            if room == 1 and self._fast_forward and len(running) <= 1:
                now = self._skip(now)
                room = self._commit_done(now)
            plan = scheduler.plan(now)
            for request in scheduler.take_ended():
                self._on_end(request, now)
            if plan is not None:
                self._launch(plan, now)
                if room > 1:
                    return self._host_free_ns
        if running:
            done = running[0][3]
            return done if done > self._host_free_ns else self._host_free_ns
        return None

    def _commit_done(self, now: int) -> int:
        """Commit what is done; returns how many plans may be made."""
        running = self._running
        while running and running[0][3] <= now:
            self._commit(running.popleft(), now)
        return self.scheduler.config.max_plans_in_flight - len(running)

    def _launch(self, plan: StepPlan, now: int) -> None:
        gpu_ns, host_ns, extrapolated = self.cost_model.step_cost(_shape(plan))
        tokens = plan.prefill_tokens + plan.decode_tokens
        start, gpu_ns = self._run_on_gpu(
            gpu_ns, host_ns, now, tokens, plan.decode_tokens, plan.prefill_pairs
        )
        self._host_free_ns, self._pace_ns = now + host_ns, gpu_ns
        known = self._gpu_free_ns + self._result_ns
        self._running.append(_Running(plan, now, start, known, gpu_ns, host_ns, extrapolated))
        if self._behaviour.active and plan.prefills:
            self._behaviour.planned(plan, self.scheduler.book)

    def _run_on_gpu(
        self, cool_ns: int, host_ns: int, plan_ns: int, tokens: int, decodes: int, pairs: int = 0
    ) -> tuple[int, int]:
        """(start, GPU time) of the next step; the GPU is taken until its end."""
        free_ns, waking = self._gpu_free_ns, self._waking
        idle_ns = plan_ns - free_ns
        start = plan_ns + waking.until_begin_ns(idle_ns, host_ns)
        if start < free_ns:
            start = free_ns
        gpu_ns = cool_ns
        if self._power is not None:
            gpu_ns = self._power.lengthen(cool_ns, tokens, start, decodes, pairs)
        if idle_ns > 0:
            gpu_ns += waking.longer_ns(idle_ns)
        self._gpu_free_ns = start + gpu_ns
        return start, gpu_ns

    def _commit(self, step: _Running, now: int) -> None:
        plan, self.last_commit_ns = step[0], now
        result = OK
        if self._behaviour.active and (stopped := self._behaviour.stopped(plan)):
            result = StepResult(stopped=stopped)
        self._record(step, now)
        for request in self.scheduler.commit(plan.plan_id, result, now):
            self._on_end(request, now)

    def _skip(self, now: int) -> int:
        """Fast-forward over identical decode steps; returns the time of the next plan."""
        scheduler, running = self.scheduler, self._running
        horizon = self._horizon()
        batch = scheduler.book.batch
        pace = running[-1].gpu_ns if running else self._pace_ns
        if not batch.members or now + 2 * pace >= horizon:
            return now
        limit = min((horizon - now) // pace + 1, _LONGEST_RUN)
        if self._behaviour.active:
            end = self._behaviour.steps_until_end(batch.iteration)
            if end is not None:
                limit = min(limit, end if running else end - 1)
        steps = scheduler.stable_steps(limit) if limit > 1 else 0
        if steps < 2:
            return now
        return (
            self._overlapped(now, horizon, steps) if running else self._serial(now, horizon, steps)
        )

    def _overlapped(self, now: int, horizon: int, steps: int) -> int:
        """Skip with one step in flight: at each turn one is committed, the next but one planned."""
        flying = self._running[0]
        shape = self._next_shape()
        gpu, host_ns, extrapolated = self.cost_model.decode_run(shape, steps)
        size, plan_ns, known = shape.decode_tokens, now, flying.known_ns
        timeline: list[tuple[int, int]] = []  # (planned, starts)
        turns: list[int] = []  # when the step before each is committed
        for at, cool_ns in enumerate(gpu):
            turn = max(known, plan_ns + host_ns)
            if turn >= horizon:
                break
            start, gpu[at] = self._run_on_gpu(cool_ns, host_ns, plan_ns, size, size)
            timeline.append((plan_ns, start))
            turns.append(turn)
            plan_ns, known = turn, self._gpu_free_ns + self._result_ns
            if turn >= known:  # the host was so slow that nothing is in flight any more
                break
        if not timeline:
            return now
        self._record(flying, turns[0])
        pages = self.scheduler.advance(len(timeline), plan_ns)
        self._record_run(shape, timeline, turns[1:], gpu, host_ns, extrapolated, pages)
        planned, start = timeline[-1]
        self._running[0] = _Running(
            flying.plan, planned, start, known, gpu[len(timeline) - 1], host_ns, extrapolated
        )
        self._host_free_ns = planned + host_ns
        return plan_ns

    def _serial(self, now: int, horizon: int, steps: int) -> int:
        """Skip with nothing in flight: plan, run, commit, one after the other."""
        shape = self._next_shape()
        gpu, host_ns, extrapolated = self.cost_model.decode_run(shape, steps)
        size, plan_ns, power = shape.decode_tokens, now, self._power
        timeline: list[tuple[int, int]] = []
        turns: list[int] = []  # when each is committed
        for at, cool_ns in enumerate(gpu):
            free_ns, heat = self._gpu_free_ns, None if power is None else power.snapshot()
            start, gpu[at] = self._run_on_gpu(cool_ns, host_ns, plan_ns, size, size)
            turn = max(self._gpu_free_ns + self._result_ns, plan_ns + host_ns)
            if turn >= horizon:
                self._gpu_free_ns = free_ns
                if power is not None and heat is not None:
                    power.restore(heat)
                break
            timeline.append((plan_ns, start))
            turns.append(turn)
            plan_ns = turn
        if not timeline:
            return now
        pages = self.scheduler.advance(len(timeline), plan_ns)
        self._record_run(shape, timeline, turns, gpu, host_ns, extrapolated, pages)
        self._host_free_ns = timeline[-1][0] + host_ns
        return plan_ns

    def _next_shape(self) -> StepShape:
        """The decode step that the next plan would be."""
        scheduler = self.scheduler
        batch = scheduler.book.batch
        size, iteration = len(batch), batch.iteration + 1
        return StepShape(
            decode_requests=size,
            decode_tokens=size,
            decode_context=batch.context_tokens(iteration),
            decode_max_context=batch.max_context_tokens(iteration),
            shared_context=scheduler.kv.shared_tokens,
            sampled_tokens=size,
            graph_batch=scheduler.graph_batch(size),
        )

    def _record(self, step: _Running, end_ns: int) -> None:
        """Write the row of one step."""
        self.steps += 1
        write = self._write
        if write is not None:
            p, plan_ns, start_ns, _, gpu_ns, host_ns, extrapolated = step
            write((
                p.plan_id, self.index, plan_ns, start_ns, end_ns, gpu_ns, host_ns,
                p.prefill_tokens, len(p.prefills), p.prefill_context, p.prefill_pairs,
                p.prefill_max_context,
                p.decode_requests, p.decode_tokens, p.decode_context, p.decode_max_context,
                p.shared_context, p.sampled_tokens, p.hit_tokens, p.graph_batch, p.running,
                p.waiting, p.block_reason,
                p.free_pages, p.cached_pages, p.retracted, p.evicted_pages, p.decode_iteration,
                extrapolated,
            ))  # fmt: skip
        if self.steps >= self._flush_at:
            self._flush_at = self.steps + _FLUSH_EVERY
            self._log.flush_if_full()

    def _record_run(
        self,
        shape: StepShape,
        timeline: list[tuple[int, int]],
        ends_ns: list[int],
        gpu: list[int],
        host_ns: int,
        extrapolated: bool,
        pages: PagesAfter,
    ) -> None:
        """Write the rows of the skipped steps that are committed; there are `len(ends_ns)`."""
        write, book = self._write, self.scheduler.book
        count = len(ends_ns)
        self.steps += count
        if write is None:
            return
        size, index = shape.decode_requests, self.index
        waiting, running = len(book.waiting), book.running
        block = self.scheduler.stable_block_reason()
        free, evicted, graph = pages.free, pages.evicted, shape.graph_batch
        cached, out = self.scheduler.kv.cached_pages + sum(evicted.values()), 0
        step = self.scheduler.next_plan_id - len(timeline)
        iteration = book.batch.iteration - len(timeline) + 1
        context, longest = shape.decode_context, shape.decode_max_context
        shared = shape.shared_context
        for at in range(count):
            planned, start = timeline[at]
            if evicted:
                out = evicted.get(at, 0)
                cached -= out
            write((
                step + at, index, planned, start, ends_ns[at], gpu[at], host_ns, 0, 0, 0, 0, 0,
                size, size, context + size * at, longest + at, shared, size, 0, graph, running,
                waiting, block, free[at], cached, 0, out, iteration + at, extrapolated,
            ))  # fmt: skip


def _shape(plan: StepPlan) -> StepShape:
    return StepShape(
        plan.prefill_tokens,
        len(plan.prefills),
        plan.prefill_context,
        plan.prefill_pairs,
        plan.prefill_max_context,
        plan.decode_requests,
        plan.decode_tokens,
        plan.decode_context,
        plan.decode_max_context,
        plan.shared_context,
        plan.sampled_tokens,
        plan.graph_batch,
    )
