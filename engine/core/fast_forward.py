"""Skips runs of identical decode steps: when that is certain, and what it changes."""

from __future__ import annotations

from typing import NamedTuple

from engine.core.enums import AdmissionBlock
from engine.core.plan import StepPlan
from engine.core.scheduler_state import SchedulerState

_Facts = tuple[int, int, AdmissionBlock, int, int, int, int, int, int]


class PagesAfter(NamedTuple):
    """Pages after each of some skipped plans.

    Attributes:
        free: free pages after each plan.
        evicted: pages that a plan evicted, by its place among them; most evict none.
    """

    free: list[int]
    evicted: dict[int, int]


class FastForward:
    """Does many cycles of plan and commit at once, for drivers that know what they cost."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._kv = state.kv
        self._book = state.book
        self._transfers = state.transfers
        self._in_flight = state.in_flight

    def stable_steps(self, limit: int) -> int:
        """How many further steps, at most `limit`, would be this very decode batch again.

        See `Scheduler.stable_steps`.
        """
        book, batch = self._book, self._book.batch
        if (
            not batch.members
            or book.joining or book.prefilling or book.verifying or book.draining or book.retracted
            or self._kv.has_deferred or self._kv.evicted_pages or self._transfers.pending or
            book.holding or len(self._in_flight) != self._state.config.max_plans_in_flight - 1
        ):  # fmt: skip
            return 0
        if len(book.waiting.live) and (
            book.running < self._state.config.max_running_requests
            or self._state.config.policy == "priority"
        ):
            return 0
        for plan in self._in_flight:
            if not plan.is_pure_decode or plan.batch_version != batch.version or plan.transfers:
                return 0
        next_limit = batch.next_limit()
        steps = limit if next_limit is None else min(limit, next_limit - batch.iteration)
        if not self._in_flight:
            steps -= 1
        return self._steps_with_pages(steps)

    def _steps_with_pages(self, steps: int) -> int:
        """The first `steps` iterations, cut off where free and evictable pages end."""
        free, size = self._kv.available_pages, self._state.config.page_size
        if steps <= 0 or len(self._book.batch) * (steps // size + 1) <= free:
            return max(0, steps)
        steps = min(steps, size)  # the calendar knows each member's next page, not the one after
        for done, need in enumerate(self._book.batch.pages_within(steps)):
            free -= need
            if free < 0:
                return done
        return steps

    def advance(self, steps: int) -> PagesAfter:
        """Do `steps` cycles of plan and commit at once, with no text ending in any of them.

        See `Scheduler.advance`.
        """
        batch, kv, free, after = self._book.batch, self._kv, self._kv.pool.free_pages, list[int]()
        size, first, plan_id = len(batch), batch.iteration + 1, self._state.next_plan_id
        evicted: dict[int, int] = {}
        for iteration in range(first, first + steps):
            crossing = batch.crossing(iteration)
            if crossing:
                self._state.next_plan_id = plan_id + iteration - first  # events name their step
                free -= len(crossing)
                if free < 0:
                    kv.ensure_free(len(crossing))
                    free = kv.pool.free_pages - len(crossing)
                    evicted[iteration - first], kv.evicted_pages = kv.evicted_pages, 0
                kv.grow_each(crossing.values())
                batch.page_given(iteration)
            after.append(free)
        pages = PagesAfter(after, evicted)
        facts = [self._facts(plan) for plan in self._in_flight]
        facts += self._facts_after(pages, size, len(facts))
        facts = facts[len(facts) - len(self._in_flight) :]
        batch.iteration += steps
        self._book.committed_iteration += steps
        self._state.next_plan_id = plan_id + steps
        self._state.newest_sampling_plan = plan_id + steps - 1
        self._book.last_decode_plan_id = plan_id + steps - 1
        self._state.commits += steps
        for at, plan in enumerate(self._in_flight):
            plan.plan_id += steps
            plan.feeds_from = plan.plan_id - 1
            plan.decode_iteration += steps
            plan.decode_context += size * steps
            plan.decode_max_context += steps
            (
                plan.free_pages, plan.waiting, plan.block_reason, plan.retracted,
                plan.evicted_pages, plan.running, plan.cached_pages, plan.graph_batch,
                plan.shared_context,
            ) = facts[at]  # fmt: skip
        if self._in_flight:
            self._book.oldest_in_flight = self._in_flight[0].plan_id
        return pages

    def stable_block_reason(self) -> AdmissionBlock:
        """Why the queue waits through the steps that `stable_steps` promises."""
        return AdmissionBlock.RUNNING_LIMIT if len(self._book.waiting.live) else AdmissionBlock.NONE

    def _facts_after(self, pages: PagesAfter, batch_size: int, count: int) -> list[_Facts]:
        """What the last `count` skipped plans say, those of all of them if they are fewer."""
        waiting, block = len(self._book.waiting.live), self.stable_block_reason()
        running, cached, shared = self._book.running, self._kv.cached_pages, self._kv.shared_tokens
        graph = self._state.graph_batch(batch_size)  # may be new after a change of settings
        facts = []
        steps = len(pages.free)
        for at in range(steps - 1, max(0, steps - count) - 1, -1):
            out = pages.evicted.get(at, 0)
            facts.append((pages.free[at], waiting, block, 0, out, running, cached, graph, shared))
            cached += out
        facts.reverse()
        return facts

    def _facts(self, plan: StepPlan) -> _Facts:
        return (
            plan.free_pages, plan.waiting, plan.block_reason, plan.retracted, plan.evicted_pages,
            plan.running, plan.cached_pages, plan.graph_batch, plan.shared_context,
        )  # fmt: skip
