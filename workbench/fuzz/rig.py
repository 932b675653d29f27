"""A scheduler on a test bench: every call goes through here, and every law is checked after it.

The rig gives the scheduler a fake device and fake links, remembers what the clients asked, and
knows the one text that each request can have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from engine.core.config import SchedulerConfig
from engine.core.enums import FinishReason, RejectReason, RequestStatus
from engine.core.events import EventLog
from engine.core.invariants import check
from engine.core.journal import Journal
from engine.core.plan import StepPlan
from engine.core.request import KVHandoff, Request
from engine.core.results import MAX_FAILURES
from engine.core.scheduler import Scheduler
from engine.core.token_ids import TokenBuffer
from workbench.fuzz.device import FakeDevice
from workbench.fuzz.fake_model import Ask, first_state, next_state
from workbench.fuzz.links import FakeLinks
from workbench.fuzz.tiny import why_never


class LawError(AssertionError):
    """Something happened that must not."""


def require(holds: object, law: str, *facts: object) -> None:
    """Raise unless a law holds.

    Raises:
        LawError: with the law and the facts that break it.
    """
    if not holds:
        raise LawError(f"{law}: {', '.join(map(str, facts))}" if facts else law)


@dataclass
class Before:
    """What a law about a plan needs to know from before it was made."""

    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    retractions: dict[int, int] = field(default_factory=dict)


class Rig:
    """One scheduler under test.

    Args:
        seed: of what the device and the links draw.
        config: of the scheduler.
        laws: of single plans; each is called with the rig and the plan.
        log: takes the scheduler's events, or None.
        journal: takes its calls, or None.
        transfer_faults: whether transfers may go wrong.
        nan_rate: how often a row comes out as no number.
        every: recount everything after each n-th event; the totals are compared after each.
        replica: its number in the tables.

    Attributes:
        now: the time told to the scheduler, in ns.
        asks, requests: by id, what was asked and what the scheduler was given.
        never: the reject reason that each request should get.
        ended: request id -> how often the scheduler reported its end to a caller.
        before: the state before the last plan.
        totals: sums over all plans of what they say happened.
        events: checks made; `plans` of them after a plan.
        shrunk: pages that an outsider holds.
        marks: what has happened at least once.
    """

    def __init__(
        self,
        seed: int,
        config: SchedulerConfig,
        *,
        laws: Sequence[Callable[[Any, StepPlan], None]] = (),
        log: EventLog | None = None,
        journal: Journal | None = None,
        transfer_faults: bool = False,
        nan_rate: float = 0.0,
        every: int = 1,
        replica: int = 0,
    ) -> None:
        self.first_config = config
        self.laws = laws
        self.log = log
        self.journal = journal
        self.scheduler = Scheduler(config, log, replica, journal)
        self.device = FakeDevice(config.num_pages, config.page_size, seed)
        self.device.nan_rate = nan_rate
        self.links = FakeLinks(self.device, seed, transfer_faults)
        self.now = 0
        self.plans = 0
        self.events = 0
        self.asks: dict[int, Ask] = {}
        self.requests: dict[int, Request] = {}
        self.never: dict[int, RejectReason] = {}
        self.aborted: set[int] = set()
        self.broken: set[int] = set()
        self.ended: Counter[int] = Counter()
        self.before = Before()
        self.totals: Counter[str] = Counter()
        self.shrunk: list[int] = []
        self.marks: set[str] = set()
        self._every = every
        self._replica = replica
        self._write_step = log.write("steps") if log is not None else None

    @property
    def config(self) -> SchedulerConfig:
        """The present settings."""
        return self.scheduler.config

    def send(self, ask: Ask) -> None:
        """A client sends a request."""
        request = ask.request()
        self.asks[ask.request_id] = ask
        self.device.know(ask)
        self.requests[ask.request_id] = request
        never = self.never[ask.request_id] = why_never(ask, self.config)
        reason = self.scheduler.add(request, self.now)
        require(reason == never, "only what can never be served is rejected", request, reason)
        self.check()

    def reconfigure(self, config: SchedulerConfig) -> bool:
        """Other settings, as far as they may change; False if KV on its way forbids them."""
        try:
            self.scheduler.reconfigure(config, self.now)
        except ValueError:
            require(self.scheduler.book.awaiting, "settings may change", config)
            return False
        self.check()
        return True

    def abort(self, request_id: int) -> None:
        """A client gives up, perhaps on a request that has ended."""
        alive = request_id in self.scheduler.book.requests
        request = self.scheduler.abort(request_id, self.now)
        require((request is not None) == alive, "abort tells whether the request was alive")
        if request is not None:
            self.aborted.add(request_id)
            self.ended[request_id] += 1
        self.check()

    def finish_transfer(self, choice: int) -> None:
        """A transfer ends, or its end is told again."""
        self.links.scribble(self.now)
        request = self.links.finish_one(self.scheduler, self.now, choice)
        if request is not None:
            self.ended[request.request_id] += 1
        self.check()

    def plan(self, fails: bool = False) -> StepPlan | None:
        """Ask for a step and launch it; `fails`: the device will not carry it out."""
        if self.laws:
            book = self.scheduler.book
            self.before = Before(
                list(book.waiting),
                list(book.running_requests()),
                {r.request_id: r.retractions for r in book.requests.values()},
            )
        plan = self.scheduler.plan(self.now)
        self.ended.update(request.request_id for request in self.scheduler.take_ended())
        if plan is None:
            self.check()
            self._nothing_to_do()
            return None
        self.plans += 1
        totals = self.totals
        totals["hit_tokens"] += plan.hit_tokens
        totals["retracted"] += plan.retracted
        totals["evicted_pages"] += plan.evicted_pages
        self.device.launch(plan, fails).plan_ns = self.now
        for transfer in plan.transfers:
            self.links.start(transfer, self.asks[transfer.request_id])
        for law in self.laws:
            law(self, plan)
        self.check()
        return plan

    def commit(self) -> None:
        """The oldest step comes back."""
        launched = self.device.take()
        plan, result = launched.plan, launched.result
        if result is None:
            raise LawError("a step that is taken has a result")
        broken: set[int] = set()
        relied_on: list[int] = []
        if result.broken:
            alive = {r.request_id for r, epoch in plan.sampling_requests() if epoch == r.epoch}
            broken = alive.intersection(result.broken)
            relied_on = [p for r in launched.rows if r.key[0] in broken for p in r.table]
        if self._write_step is not None and not result.failed:
            self._write_step(launched.step_row(self.now, self._replica))
        ended = self.scheduler.commit(plan.plan_id, result, self.now)
        self.ended.update(request.request_id for request in ended)
        failed = {r.request_id for r in ended if r.finish_reason == FinishReason.ERROR}
        require(broken <= failed, "what is no number ends with an error", broken, failed)
        self.broken |= broken
        self.check()
        if relied_on:
            self._check_healed(self.device.without_numbers(relied_on))

    def check(self) -> None:
        """The totals; at every n-th event the recount and who may touch which page."""
        kv = self.scheduler.kv
        self.events += 1
        free = kv.pool.free_list()
        self.device.pages_freed(free)
        if self.events % self._every == 0:
            self.recount()
            return
        size = self.config.page_size
        held = sum(
            len(r.pages) - r.cached_depth // size for r in self.scheduler.book.requests.values()
        )
        held += len(free) + kv.pool.orphaned_pages
        if kv.has_deferred:
            held += sum(len(pages) for _, pages, _ in kv.deferred())
        if kv.cache is not None:
            held += kv.cache.evictable_pages + kv.cache.protected_pages
        require(held == kv.pool.num_pages, "every page has one owner", held, kv.pool.num_pages)

    def recount(self) -> None:
        """The recount, and the device's view of who may touch which page."""
        scheduler = self.scheduler
        check(scheduler)
        self._check_page_tables()
        if not self.device.in_flight:
            return
        size, free = self.config.page_size, set(scheduler.kv.pool.free_list())
        taken = set(free)
        for request in scheduler.book.requests.values():
            taken.update(request.pages[request.cached_depth // size :])
        for launched in self.device.in_flight:
            for row in launched.rows:
                pages = self.device.touched(row)
                if row.epoch == row.request.epoch:
                    same = pages <= set(row.request.pages)
                    require(same, "a page table in flight stays as it is", row.request)
                    require(not pages & free, "no page in use is free", pages & free)
                elif pages & taken:
                    what = f"plan {launched.plan.plan_id} still uses {pages & taken}"
                    raise LawError(f"pages of a step in flight belong to nobody else: {what}")

    def _check_page_tables(self) -> None:
        """Nobody holds a page without a token that is computed or planned in it."""
        book, size = self.scheduler.book, self.config.page_size
        iteration = book.batch.iteration
        tokens = {r.request_id: r.offset + iteration for r in book.batch.members.values()}
        for place in (book.prefilling, book.joining, book.verifying, book.awaiting, book.holding):
            tokens |= {r.request_id: r.scheduled_tokens for r in place.values()}
        for request_id, count in tokens.items():
            request = book.requests[request_id]
            fits = len(request.pages) == -(-count // size)
            require(fits, "no page without a token", request, len(request.pages), count)

    def _check_healed(self, bad: set[int]) -> None:
        """Whoever notices that KV is no number is the last to get it."""
        cache = self.scheduler.kv.cache
        stack = list(cache.roots().values()) if cache else []
        while stack:
            node = stack.pop()
            if node.withdrawn:
                self.marks.add("withdrawn")
                continue
            require(bad.isdisjoint(node.pages), "KV that is no number is shared once noticed", bad)
            stack.extend(node.children.values())

    def check_cached_kv(self) -> None:
        """What the prefix cache offers is the KV of exactly those tokens of that tenant.

        It may hold no numbers as long as nobody has seen a token of it.
        """
        cache = self.scheduler.kv.cache
        states: dict[int, tuple[list[int], list[int]]] = {}
        for tenant, root in cache.roots().items() if cache else ():
            states[root.node_id] = [first_state(tenant)], []
        for _, node in cache.nodes() if cache else ():
            if node.parent is None:
                raise LawError(f"node {node.node_id} has a parent")
            before, pages = states[node.parent.node_id]
            chain = list(before)
            for token in memoryview(node.key).cast("i"):
                chain.append(next_state(chain[-1], token))
            states[node.node_id] = chain, pages + node.pages
            what = f"node {node.node_id}"
            self.device.holds_numbers(pages + node.pages, chain[1:], what)
            if node.proven:
                proven = pages + node.pages[: node.proven]
                self.device.expect(proven, chain[1 : 1 + len(proven) * self.config.page_size], what)

    def _nothing_to_do(self) -> None:
        """No step: then something is under way that will change that, or nothing is left."""
        if self.device.in_flight or not self.scheduler.has_work or self.shrunk:
            return
        pending = self.scheduler.transfers.pending
        require(pending, "nothing runs, and nothing will ever change that", *self.requests.values())
        require(self.scheduler.next_wakeup() is not None, "an open transfer has a deadline")

    def quiesce(self) -> None:
        """With nothing alive and all transfers over, all memory is free or evictable."""
        while self.device.in_flight:
            self.commit()
        self.now += self.config.transfer_timeout_ns
        require(self.scheduler.plan(self.now) is None, "an idle scheduler plans nothing")
        self.ended.update(request.request_id for request in self.scheduler.take_ended())
        while self.links.trips:
            self.finish_transfer(0)
        self.recount()
        self.check_cached_kv()
        kv, book = self.scheduler.kv, self.scheduler.book
        pages = kv.pool.free_pages + kv.cached_pages
        require(pages == kv.pool.num_pages, "an idle scheduler holds no page", pages)
        require(not kv.pool.leases(), "an idle scheduler has no lease", kv.pool.leases())
        counts = (kv.pool.orphaned_pages, kv.has_deferred, kv.held_pages, book.promised_pages,
                  book.running)  # fmt: skip
        require(not any(counts), "an idle scheduler's counters are zero", *counts)
        places = [*book.draining, *book.joining, *book.holding, *book.awaiting]
        require(not places, "an idle scheduler lists nobody", *places)
        if kv.cache is not None:
            require(kv.cache.protected_pages == 0, "an idle cache protects nothing")
            kv.evict(kv.cached_pages)
            require(kv.pool.free_pages == kv.pool.num_pages, "an idle cache can be emptied")

    def outputs(self) -> dict[int, list[int]]:
        """Text of each request that came to its own end."""
        return {
            i: _text(request)
            for i, request in self.requests.items()
            if request.finish_reason in _OWN_END
        }

    def check_ends(self) -> None:
        """Every request ended once, truthfully, with the tokens of an undisturbed run."""
        for request_id, request in self.requests.items():
            require(request.status == RequestStatus.FINISHED, "everything ends", request)
            times = self.ended[request_id] + bool(self.never[request_id])
            require(times == 1, "each request ends once", request, times)
            self._check_text(request)
            self._check_reason(request)

    def _check_text(self, request: Request) -> None:
        ask, outputs = self.asks[request.request_id], request.committed_outputs
        text, story = _text(request), self.device.stories[request.request_id]
        known = outputs or (len(text) - len(ask.prompt) if ask.handoff == KVHandoff.RECEIVE else 0)
        story.grow_to(len(ask.prompt) + known)
        same = text == story.tokens[: len(ask.prompt) + known]
        require(same, "no fault changes a token", request, text)

    def _check_reason(self, request: Request) -> None:
        ask = self.asks[request.request_id]
        request_id, reason, outputs = (
            request.request_id,
            request.finish_reason,
            request.committed_outputs,
        )
        never = self.never[request_id]
        law = f"{reason.name} is a true reason"
        require(never == request.reject_reason, law, request)
        if reason == FinishReason.STOP:
            require(outputs == ask.stop_after <= ask.max_tokens, law, request, outputs)
        elif reason == FinishReason.LENGTH:
            require(outputs == ask.max_tokens < ask.stop_after, law, request, outputs)
        elif reason == FinishReason.TRANSFERRED:
            require((ask.handoff, outputs) == (KVHandoff.SEND, 1), law, request, outputs)
            require(ask.stop_after > 1, law, request)
        elif reason == FinishReason.ERROR:
            lost = ask.handoff == KVHandoff.SEND and outputs == 1  # its transfer failed
            known = request.failures == MAX_FAILURES or lost or request_id in self.broken
            require(known, law, request)
        require(reason == FinishReason.ERROR or request_id not in self.broken, law, request)
        require((reason == FinishReason.REJECTED) == bool(never), law, request)
        require((reason == FinishReason.ABORT) == (request_id in self.aborted), law, request)


_OWN_END: Final = (FinishReason.STOP, FinishReason.LENGTH)


def _text(request: Request) -> list[int]:
    """All ids that a request has."""
    tokens = request.tokens
    if not isinstance(tokens, TokenBuffer):
        raise LawError(f"{request} has a text")
    ids: list[int] = tokens.ids(0, len(tokens)).tolist()
    return ids
