"""KV that is shared before anybody has seen a token of it: it is used, and it is noticed if bad."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.core.config import SchedulerConfig
from engine.core.enums import FinishReason
from engine.core.invariants import check
from engine.core.plan import StepPlan, StepResult
from engine.core.radix_tree import Eviction
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.token_ids import TokenBuffer

PROMPT = list(range(16))
CONFIG = SchedulerConfig(
    num_pages=32, page_size=4, max_model_len=99, max_num_batched_tokens=8, max_running_requests=4,
    max_plans_in_flight=1, transfer_timeout_ns=10,
)  # fmt: skip


class Clients:
    """A scheduler whose clients send prompts and say how each step came out."""

    def __init__(self, config: SchedulerConfig = CONFIG) -> None:
        self.scheduler = Scheduler(config)
        self.now = 0

    def send(self, request_id: int, prompt: list[int] = PROMPT) -> Request:
        """A new request for two tokens."""
        request = Request(request_id, len(prompt), 2, tokens=TokenBuffer(prompt))
        self.scheduler.add(request, self.tick())
        return request

    def step(self, broken: tuple[int, ...] = ()) -> StepPlan:
        """The next step; the rows of `broken` come out as no number."""
        plan = self.scheduler.plan(self.tick())
        assert plan is not None
        ids = [1] * len(plan.sampling_requests())
        result = StepResult(token_ids=ids, broken=[i for i in broken if samples(plan, i)])
        self.scheduler.commit(plan.plan_id, result, self.tick())
        check(self.scheduler)
        return plan

    def finish(self, *broken: int) -> None:
        """Steps until all have ended; whatever comes of `broken` is no number."""
        while self.scheduler.has_work:
            self.step(broken)

    def leave_half(self, request_id: int, prompt: list[int] = PROMPT) -> None:
        """A client gives up when the first 8 tokens of its prompt are computed."""
        self.send(request_id, prompt)
        self.step()
        self.scheduler.abort(request_id, self.tick())
        check(self.scheduler)

    def shared(self, prompt: list[int] = PROMPT) -> int:
        """Tokens of a prompt that a new request would find."""
        return self.scheduler.kv.cached_tokens(TokenBuffer(prompt).ids(0, len(prompt)), 0)

    def tick(self) -> int:
        """A later time."""
        self.now += 1
        return self.now


def samples(plan: StepPlan, request_id: int) -> bool:
    return any(request.request_id == request_id for request, _ in plan.sampling_requests())


def test_chunks_of_a_prompt_that_was_given_up_are_shared() -> None:
    """Nobody has seen a token of them, and nearly always they are as good as any others."""
    clients = Clients()
    clients.leave_half(0)
    assert clients.shared() == 8
    request = clients.send(1)
    clients.finish()
    assert (request.finish_reason, request.cached_tokens) == (FinishReason.LENGTH, 8)


def test_the_first_request_that_notices_bad_chunks_is_the_last_to_get_them() -> None:
    """Their KV may hold no numbers: then whoever relied on them fails, and nobody after that."""
    clients = Clients()
    clients.leave_half(0)
    unlucky = clients.send(1)
    clients.finish(1)
    assert unlucky.finish_reason == FinishReason.ERROR
    assert clients.shared() == 0
    healed = clients.send(2)
    clients.finish()
    assert (healed.finish_reason, healed.cached_tokens) == (FinishReason.LENGTH, 0)
    assert clients.shared() == 16


def test_a_prefix_that_has_given_a_token_is_not_blamed() -> None:
    """Else one text that overflows would take the system prompt from everybody."""
    clients = Clients()
    clients.send(0)
    clients.finish()
    assert clients.shared() == 16
    clients.send(1, [*PROMPT, 7, 7, 7, 7])
    clients.finish(1)
    assert clients.shared() == 16


def test_only_what_is_not_proven_is_withdrawn() -> None:
    """A text goes on from a proven prefix, is given up half way, and turns out to be bad."""
    clients, longer = Clients(), [*PROMPT, *range(50, 66)]
    clients.send(0)
    clients.finish()
    clients.leave_half(1, longer)
    assert clients.shared(longer) == 24
    clients.send(2, longer)
    clients.finish(2)
    assert clients.shared(longer) == 16


def test_who_runs_on_a_withdrawn_prefix_keeps_its_pages() -> None:
    """Of two that rely on the same chunks one fails; the other's page table does not change."""
    clients = Clients()
    clients.leave_half(0)
    failing, running = clients.send(1, PROMPT[:12]), clients.send(2, [*PROMPT[:8], *range(70, 74)])
    clients.step((1,))
    assert failing.finish_reason == FinishReason.ERROR
    assert running.pages[:2] == [0, 1]
    assert clients.shared() == 0
    clients.finish()
    assert running.finish_reason == FinishReason.LENGTH
    assert clients.shared() == 0


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
def test_what_is_withdrawn_is_evicted_first(eviction: Eviction) -> None:
    """It is of no use to anybody, however popular it was."""
    clients = Clients(replace(CONFIG, eviction=eviction))
    clients.send(0, list(range(100, 116)))
    clients.finish()
    clients.leave_half(1)
    for request_id in (2, 3):
        clients.send(request_id)
    clients.finish(2, 3)
    kv = clients.scheduler.kv
    assert kv.cached_pages == 6
    kv.evict(2)
    check(clients.scheduler)
    assert clients.shared(list(range(100, 116))) == 16
    assert kv.cached_pages == 4


def test_an_idle_cache_with_something_withdrawn_can_be_emptied() -> None:
    """No page is lost with it."""
    clients = Clients()
    clients.leave_half(0)
    clients.send(1)
    clients.finish(1)
    kv = clients.scheduler.kv
    kv.evict(kv.cached_pages)
    assert kv.pool.free_pages == CONFIG.num_pages
