"""Seeded runs of a scheduler against fakes, with every law checked after every event."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from core_fakes import Ask, FakeDevice, FakeLinks, first_state, next_state
from core_random import TIMEOUT_NS, random_asks, random_config, why_never
from hypothesis import HealthCheck, settings

from engine.core.config import UNCHANGEABLE, SchedulerConfig
from engine.core.enums import FinishReason, RejectReason, RequestStatus
from engine.core.events import Detail, EventLog
from engine.core.invariants import check
from engine.core.journal import Journal
from engine.core.plan import StepPlan
from engine.core.request import KVHandoff, Request
from engine.core.results import MAX_FAILURES
from engine.core.scheduler import Scheduler


def machine_settings(max_examples: int, steps: int = 40) -> settings:
    """Settings of a state machine: the same examples on every run, no deadline, no database."""
    return settings(
        max_examples=max_examples,
        stateful_step_count=steps,
        derandomize=True,
        report_multiple_bugs=False,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def fresh_seeds(count: int) -> list[int]:
    """Seeds that no run before has tried; pytest shows them when a test fails."""
    seeds = [random.SystemRandom().getrandbits(32) for _ in range(count)]
    print("fresh seeds:", seeds)
    return seeds


@dataclass(frozen=True)
class Faults:
    """How often what goes wrong, per event."""

    abort: float = 0.0
    fail: float = 0.0
    reconfigure: float = 0.0
    transfers: bool = False
    nan: float = 0.0


NO_FAULTS = Faults()
ALL_FAULTS = Faults(abort=0.03, fail=0.02, reconfigure=0.01, transfers=True, nan=0.01)


PlanLaw = Callable[["Run", StepPlan], None]


@dataclass
class Before:
    """What a law about a plan needs to know from before it was made."""

    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    retractions: dict[int, int] = field(default_factory=dict)


class Run:
    """One scheduler, driven by random events; `play` goes on until every request has ended.

    Attributes:
        ended: request id -> how often the scheduler reported its end to a caller.
        before: the state before the last plan.
        totals: sums over all plans of what they say happened.
    """

    def __init__(
        self,
        seed: int,
        config: SchedulerConfig,
        asks: Sequence[Ask],
        faults: Faults = NO_FAULTS,
        laws: Sequence[PlanLaw] = (),
        detail: Detail = Detail.PAGES,
    ) -> None:
        self.rng = random.Random(seed)
        self.first_config = config
        self.asks = {ask.request_id: ask for ask in asks}
        self.faults = faults
        self.laws = laws
        self.log = EventLog(detail)
        self.journal = Journal()
        self.scheduler = Scheduler(config, self.log, journal=self.journal)
        self.device = FakeDevice(config.num_pages, config.page_size, seed)
        self.device.nan_rate = faults.nan
        self.links = FakeLinks(self.device, random.Random(seed), faults.transfers)
        self.now = 0
        self.plans = 0
        self.requests: dict[int, Request] = {}
        self.never: dict[int, RejectReason] = {}
        self.aborted: set[int] = set()
        self.broken: set[int] = set()
        self.ended: Counter[int] = Counter()
        self.before = Before()
        self.totals: Counter[str] = Counter()
        self._to_send = list(asks)
        self._most_plans = 400 + 60 * sum(len(a.prompt) + a.max_tokens for a in asks)

    @property
    def config(self) -> SchedulerConfig:
        """The present settings."""
        return self.scheduler.config

    def play(self) -> Run:
        """Random events until everything has ended, then the checks of an idle scheduler."""
        while self._to_send or self.scheduler.has_work:
            self.event()
        self._quiesce()
        return self

    def event(self) -> None:
        """One random event and all checks."""
        rng, self.now = self.rng, self.now + 1
        if self._to_send and (rng.random() < 0.4 or not self.scheduler.has_work):
            self.send(self._to_send.pop(0))
        if self.requests and rng.random() < self.faults.abort:
            self.abort(rng.choice(list(self.requests)))
        if self.links.trips and rng.random() < 0.3:
            self.finish_transfer()
        if rng.random() < self.faults.reconfigure:
            self.reconfigure()
        self.device.run_some(rng.choice([0, 0, 0, 1, 4]))
        depth = self.config.max_plans_in_flight
        if len(self.device.in_flight) < depth and rng.random() < 0.8:
            self.plan()
        if self.device.in_flight and (rng.random() < 0.5 or len(self.device.in_flight) >= depth):
            self.commit()

    def send(self, ask: Ask) -> None:
        """A client sends a request."""
        request = ask.request()
        self.asks[ask.request_id] = ask
        self.device.stop_after[ask.request_id] = ask.stop_after
        self.requests[ask.request_id] = request
        self.never[ask.request_id] = why_never(ask, self.config)
        assert self.scheduler.add(request, self.now) == self.never[ask.request_id]
        self.check()

    def reconfigure(self) -> None:
        """Other settings, as far as they may change."""
        kept = {name: getattr(self.config, name) for name in UNCHANGEABLE}
        try:
            self.scheduler.reconfigure(random_config(self.rng, **kept), self.now)
        except ValueError:
            assert self.scheduler.book.awaiting
        self.check()

    def abort(self, request_id: int) -> None:
        """A client gives up, perhaps on a request that has ended."""
        alive = request_id in self.scheduler.book.requests
        request = self.scheduler.abort(request_id, self.now)
        assert (request is not None) == alive
        if request is not None:
            self.aborted.add(request_id)
            self.ended[request_id] += 1
        self.check()

    def finish_transfer(self) -> None:
        """A transfer ends, or its end is told again."""
        self.links.scribble(self.now)
        request = self.links.finish_one(self.scheduler, self.now)
        if request is not None:
            self.ended[request.request_id] += 1
        self.check()

    def plan(self) -> StepPlan | None:
        """Ask for a step and launch it."""
        book = self.scheduler.book
        self.before = Before(
            list(book.waiting),
            list(book.running_requests()),
            {r.request_id: r.retractions for r in book.requests.values()},
        )
        plan = self.scheduler.plan(self.now)
        if plan is None:
            self.check()
            self._nothing_to_do()
            return None
        self.plans += 1
        for name in ("hit_tokens", "retracted", "evicted_pages"):
            self.totals[name] += getattr(plan, name)
        assert self.plans < self._most_plans, "the requests do not come to an end"
        self.device.launch(plan, self.rng.random() < self.faults.fail)
        for transfer in plan.transfers:
            self.links.start(transfer, self.asks[transfer.request_id])
        for law in self.laws:
            law(self, plan)
        self.check()
        return plan

    def commit(self) -> None:
        """The oldest step comes back."""
        launched = self.device.take()
        assert launched.result is not None
        alive = {r.request_id for r, epoch in launched.plan.sampling_requests() if epoch == r.epoch}
        broken = alive.intersection(launched.result.broken)
        ended = self.scheduler.commit(launched.plan.plan_id, launched.result, self.now)
        self.ended.update(request.request_id for request in ended)
        assert broken <= {r.request_id for r in ended if r.finish_reason == FinishReason.ERROR}
        self.broken |= broken
        self.check()

    def check(self) -> None:
        """The recount, and the device's view of who may touch which page."""
        scheduler = self.scheduler
        check(scheduler)
        self._check_page_tables()
        free = scheduler.kv.pool.free_list()
        self.device.pages_freed(free)
        if not self.device.in_flight:
            return
        size, taken = self.config.page_size, set(free)
        for request in scheduler.book.requests.values():
            taken.update(request.pages[request.cached_depth // size :])
        for launched in self.device.in_flight:
            for row in launched.rows:
                pages = self.device.touched(row)
                if row.epoch == row.request.epoch:
                    assert pages <= set(row.request.pages), f"{row.request}: its page table changed"
                    assert not pages.intersection(free)
                else:
                    assert not pages & taken, (
                        f"plan {launched.plan.plan_id} still uses {pages & taken}"
                    )

    def _check_page_tables(self) -> None:
        """Nobody holds a page without a token that is computed or planned in it."""
        book, size = self.scheduler.book, self.config.page_size
        iteration = book.batch.iteration
        tokens = {r.request_id: r.offset + iteration for r in book.batch.members.values()}
        for place in (book.prefilling, book.joining, book.verifying, book.awaiting, book.holding):
            tokens |= {r.request_id: r.scheduled_tokens for r in place.values()}
        for request_id, count in tokens.items():
            assert len(book.requests[request_id].pages) == -(-count // size)

    def check_cached_kv(self) -> None:
        """What the prefix cache offers is the KV of exactly those tokens."""
        cache = self.scheduler.kv.cache
        states: dict[int, tuple[list[int], list[int]]] = {}
        for tenant, root in cache.roots().items() if cache else ():
            states[root.node_id] = [first_state(tenant)], []
        for _, node in cache.nodes() if cache else ():
            before, pages = states[node.parent.node_id]
            chain = list(before)
            for token in memoryview(node.key).cast("i"):
                chain.append(next_state(chain[-1], token))
            states[node.node_id] = chain, pages + node.pages
            self.device.expect(pages + node.pages, chain[1:], f"node {node.node_id}")

    def _nothing_to_do(self) -> None:
        """No step: then something is under way that will change that, or nothing is left."""
        if self.device.in_flight or not self.scheduler.has_work:
            return
        assert self.scheduler.transfers.pending, "nothing runs, and nothing will ever change that"
        wakeup = self.scheduler.next_wakeup()
        assert wakeup is not None
        if self.faults.transfers and self.rng.random() < 0.5:
            self.now = max(self.now, wakeup - 1)

    def _quiesce(self) -> None:
        """With nothing alive and all transfers over, all memory is free or evictable."""
        while self.device.in_flight:
            self.commit()
        self.now += TIMEOUT_NS
        assert self.scheduler.plan(self.now) is None
        while self.links.trips:
            self.finish_transfer()
        self.check()
        self.check_cached_kv()
        kv, book = self.scheduler.kv, self.scheduler.book
        assert kv.pool.free_pages + kv.cached_pages == self.config.num_pages
        assert kv.pool.leases() == {}
        assert (kv.pool.orphaned_pages, kv.has_deferred) == (0, False)
        assert (kv.held_pages, book.promised_pages, book.running) == (0, 0, 0)
        assert [*book.draining, *book.joining, *book.holding, *book.awaiting] == []
        if kv.cache is not None:
            assert kv.cache.protected_pages == 0
            kv.evict(kv.cached_pages)
            assert kv.pool.free_pages == self.config.num_pages

    def outputs(self) -> dict[int, list[int]]:
        """Text of each request that came to its own end."""
        return {
            i: request.tokens.ids(0, len(request.tokens)).tolist()
            for i, request in self.requests.items()
            if request.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        }

    def check_ends(self) -> None:
        """Every request ended once, truthfully, with the tokens of an undisturbed run."""
        for request_id, request in self.requests.items():
            ask = self.asks[request_id]
            assert request.status == RequestStatus.FINISHED
            text = request.tokens.ids(0, len(request.tokens)).tolist()
            known_first = ask.handoff == KVHandoff.RECEIVE and request.committed_outputs == 0
            assert text in (ask.text(request.committed_outputs), ask.text(1)[: 10**9 * known_first])
            reason, outputs = request.finish_reason, request.committed_outputs
            never = self.never[request_id]
            assert never == request.reject_reason
            if reason == FinishReason.STOP:
                assert outputs == ask.stop_after <= ask.max_tokens
            elif reason == FinishReason.LENGTH:
                assert outputs == ask.max_tokens < ask.stop_after
            elif reason == FinishReason.TRANSFERRED:
                assert (ask.handoff, outputs) == (KVHandoff.SEND, 1)
                assert ask.stop_after > 1
            elif reason == FinishReason.ERROR:
                lost = ask.handoff == KVHandoff.SEND and self.faults.transfers and outputs == 1
                assert request.failures == MAX_FAILURES or lost or request_id in self.broken
            assert reason == FinishReason.ERROR or request_id not in self.broken
            assert (reason == FinishReason.REJECTED) == bool(never)
            assert (reason == FinishReason.ABORT) == (request_id in self.aborted)


def random_run(
    seed: int,
    faults: Faults = NO_FAULTS,
    laws: Sequence[PlanLaw] = (),
    handoffs: bool = False,
    count: int = 24,
    **fixed: Any,
) -> Run:
    """A finished run that is a function of its arguments alone."""
    rng = random.Random(seed)
    if not faults.transfers:
        fixed.setdefault("transfer_timeout_ns", 10**9)
    config = random_config(rng, **fixed)
    run = Run(seed, config, random_asks(rng, config, count, handoffs), faults, laws)
    try:
        return run.play()
    except Exception as error:
        error.add_note(f"seed {seed}: {config}")
        raise
