"""Two schedulers that get the same calls, except that one skips runs of decode steps."""

from __future__ import annotations

import random
from typing import Any

from engine.core.config import UNCHANGEABLE, SchedulerConfig
from engine.core.enums import TransferStatus
from engine.core.events import Detail, EventLog
from engine.core.invariants import check
from engine.core.journal import Journal
from engine.core.plan import OK, StepPlan, StepResult
from engine.core.request import KVHandoff, Request
from engine.core.scheduler import Scheduler
from engine.core.token_ids import SyntheticTokens
from workbench.fuzz.tiny import random_config

_REQUEST_FACTS = (
    "request_id", "status", "epoch", "pages", "cached_depth", "scheduled_tokens",
    "committed_tokens", "committed_outputs", "pending_outputs", "known_tokens", "retractions",
    "offset", "span_first", "span_last", "span_token_ns", "last_plan_id", "cached_tokens",
    "recomputed_tokens", "admitted_ns", "first_token_ns", "failures",
)  # fmt: skip
_BOOK_FACTS = (
    "committed_iteration", "last_decode_plan_id", "oldest_in_flight", "promised_pages",
    "retracted", "running",
)  # fmt: skip
_NODE_FACTS = ("node_id", "pages", "locks", "last_access", "hits", "proven", "withdrawn")


def observable(scheduler: Scheduler) -> dict[str, Any]:
    """Everything that a caller could see of a scheduler, as plain values."""
    book, kv, batch = scheduler.book, scheduler.kv, scheduler.book.batch
    live = list(batch.members)
    facts = {
        request_id: (
            [getattr(request, name) for name in _REQUEST_FACTS],
            book.output_tokens(request),
            book.kv_committed(request),
        )
        for request_id, request in book.requests.items()
    }
    places = (book.prefilling, book.joining, book.verifying, book.holding, book.awaiting)
    return {
        "next_plan_id": scheduler.next_plan_id,
        "in_flight": [plan.signature() for plan in scheduler.in_flight],
        "requests": facts,
        "book": [getattr(book, name) for name in _BOOK_FACTS],
        "places": [list(place) for place in places],
        "waiting": [request.request_id for request in book.waiting],
        "draining": {plan_id: list(place) for plan_id, place in book.draining.items()},
        "batch": (batch.iteration, batch.version, live, batch.next_limit()),
        "sums": (batch.context_tokens(batch.iteration), batch.remaining_tokens()),
        "crossings": {i: list(bucket) for i, bucket in batch.crossings.items()},
        "memory": (kv.pool.free_list(), kv.held_pages, kv.cached_pages, kv.evicted_pages),
        "tree": [
            (namespace, *(getattr(node, name) for name in _NODE_FACTS))
            for namespace, node in (kv.cache.nodes() if kv.cache else ())
        ],
        "hits": kv.cache and (kv.cache.lookups, kv.cache.lookup_tokens, kv.cache.hit_tokens),
        "roots": [root.node_id for root in kv.cache.roots().values()] if kv.cache else [],
    }


class Twins:
    """A scheduler that advances and one that goes step by step, in the same random world.

    Attributes:
        skipped: steps that the fast one did not plan one by one.
    """

    def __init__(self, seed: int, **fixed: Any) -> None:
        self.rng = rng = random.Random(seed)
        roomy = rng.random() < 0.6
        settled: dict[str, Any] = dict(
            num_pages=rng.randint(60, 200) if roomy else rng.randint(8, 40),
            page_size=rng.choice([1, 2, 4, 16, 64]),
            max_model_len=10_000,
            max_num_batched_tokens=rng.randint(8, 200),
        )
        self.config: SchedulerConfig = random_config(rng, **settled | fixed)
        self.journal = Journal()
        self.fast_log, self.slow_log = EventLog(Detail.PAGES), EventLog(Detail.PAGES)
        self.fast = Scheduler(self.config, self.fast_log, journal=self.journal)
        self.slow = Scheduler(self.config, self.slow_log)
        self.lengths: dict[int, tuple[int, int, int]] = {}
        self.now = 0
        self.skipped = 0

    def play(self, count: int) -> Twins:
        """Send `count` requests among random events until all have ended."""
        while len(self.lengths) < count or self.fast.has_work:
            self.now += self.rng.randint(0, 3)
            chance = self.rng.random()
            if chance < 0.15 and len(self.lengths) < count:
                self._add()
            elif chance < 0.18 and self.lengths:
                self._both("abort", self.rng.randrange(len(self.lengths)), self.now)
            elif chance < 0.25 and self.fast.transfers.pending:
                transfer_id = self.rng.choice(list(self.fast.transfers.pending))
                self._both(
                    "transfer_done", transfer_id, self.rng.choice(list(TransferStatus)), self.now
                )
            elif chance < 0.19:
                self._reconfigure()
            elif chance < 0.6 or not self._skip():
                self._step()
            self.compare()
        return self

    def compare(self) -> None:
        """The twins are alike, and sound."""
        assert observable(self.fast) == observable(self.slow)
        check(self.fast)

    def tokens(self, request_id: int) -> SyntheticTokens | None:
        """A text that shares its beginning with every third one."""
        prompt, most, sharing = self.lengths[request_id]
        if sharing < 0:
            return None
        common = min(prompt, 24)
        keys = [sharing, 100 + request_id]
        return SyntheticTokens(keys, [common, prompt - common + most], 1000)

    def texts(self, request_id: int) -> tuple[SyntheticTokens | None, SyntheticTokens | None]:
        """The ids that the fast and the slow twin get."""
        tokens = self.tokens(request_id)
        return tokens, tokens

    def _add(self) -> None:
        rng, request_id = self.rng, len(self.lengths)
        slots = self.config.num_pages * self.config.page_size
        prompt = rng.randint(1, min(slots, 60))
        most = rng.choice([1, rng.randint(1, 20), rng.randint(1, slots)])
        self.lengths[request_id] = prompt, most, rng.randint(-1, 2)
        priority, tenant = rng.randint(0, 1), rng.randint(0, 2)
        handoff = rng.choice([KVHandoff.NONE] * 8 + [KVHandoff.SEND, KVHandoff.RECEIVE])
        schedulers = (self.fast, self.slow)
        for scheduler, tokens in zip(schedulers, self.texts(request_id), strict=True):
            request = Request(
                request_id, prompt, most, priority=priority, tenant=tenant // 2, tokens=tokens,
                handoff=handoff,
            )  # fmt: skip
            scheduler.add(request, self.now)

    def _reconfigure(self) -> None:
        """Other settings, unless KV on its way forbids them."""
        config = self.fast.config
        kept = {name: getattr(config, name) for name in UNCHANGEABLE}
        other = random_config(self.rng, **kept)
        if not self.fast.book.awaiting:
            self._both("reconfigure", other, self.now)

    def _step(self) -> None:
        """Plan or commit."""
        depth = self.fast.config.max_plans_in_flight
        flying = len(self.fast.in_flight)
        if flying < depth and self.rng.random() < 0.7:
            fast, slow = (scheduler.plan(self.now) for scheduler in (self.fast, self.slow))
            assert (fast and fast.signature()) == (slow and slow.signature())
            if fast is not None:
                return
        if flying:
            plan = self.fast.in_flight[0]
            result = self._result(plan)
            ended = self._both("commit", plan.plan_id, result, self.now)
            assert [r.request_id for r in ended[0]] == [r.request_id for r in ended[1]]

    def _result(self, plan: StepPlan) -> StepResult:
        rng = self.rng
        if rng.random() < 0.01:
            return StepResult(failed=True)
        stopped = [i for i in self.fast.book.requests if rng.random() < 0.02]
        kept = [rng.randint(0, item.num_tokens) for item in plan.verifies]
        broken = [i for i in self.fast.book.requests if rng.random() < 0.005]
        return StepResult(stopped=stopped, verified=kept, broken=broken)

    def _skip(self) -> bool:
        """Skip a number of steps, if they are certain."""
        if len(self.fast.in_flight) >= self.fast.config.max_plans_in_flight:
            return False
        limit = self.rng.choice([1, 3, 10, 100])
        certain = self.fast.stable_steps(limit)
        assert certain == self.slow.stable_steps(limit) <= limit
        if certain == 0:
            return False
        steps = self.rng.choice([certain, self.rng.randint(1, certain)])
        pages = self.fast.advance(steps, self.now)
        batch = list(self.slow.book.batch.members)
        walked = []
        for _ in range(steps):
            plan = self.slow.plan(self.now)
            assert plan is not None
            assert plan.is_pure_decode
            assert [request.request_id for request, _ in plan.decode_members()] == batch
            walked.append((plan.free_pages, plan.evicted_pages))
            assert self.slow.commit(self.slow.in_flight[0].plan_id, OK, self.now) == []
        assert [(n, pages.evicted.get(at, 0)) for at, n in enumerate(pages.free)] == walked
        self.skipped += steps
        return True

    def _both(self, call: str, *args: Any) -> list[Any]:
        return [getattr(scheduler, call)(*args) for scheduler in (self.fast, self.slow)]
