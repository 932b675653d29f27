"""Decisions about memory: who may enter, who never can, and who must leave."""

from __future__ import annotations

from engine.core.admission import MOST_EXPECTED_TOKENS
from engine.core.enums import AdmissionBlock, RejectReason, RetractReason
from engine.core.radix_node import PrefixMatch
from engine.core.request import KVHandoff, Request
from engine.core.scheduler_state import SchedulerState


class MemoryPolicy:
    """Admission by expected or reserved memory, and the choice of whom to retract."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._kv = state.kv
        self._book = state.book

    def why_never(self, request: Request) -> RejectReason:
        config = self._state.config
        if request.prompt_tokens + request.max_tokens > config.max_model_len:
            return RejectReason.EXCEEDS_CONTEXT
        if self._book.pages_promised(request) > config.num_pages:
            return RejectReason.EXCEEDS_KV_POOL
        if not config.chunked_prefill and request.prompt_tokens > config.prefill_budget:
            return RejectReason.EXCEEDS_STEP_BUDGET
        return RejectReason.NONE

    def block_reason(self, request: Request, shared_pages: int) -> AdmissionBlock:
        """Whether memory forbids a request whose first `shared_pages` pages are cached."""
        book, kv, size = self._book, self._kv, self._state.config.page_size
        available = kv.available_pages
        now_pages = -(-request.known_tokens // size) - shared_pages
        if now_pages > available:
            return AdmissionBlock.KV_PAGES
        if self._state.config.admission == "reserve":
            own = book.pages_promised(request) - shared_pages
            promised = book.promised_pages - kv.held_pages
            return AdmissionBlock.KV_RESERVED if own + promised > available else AdmissionBlock.NONE
        if not book.running:
            return AdmissionBlock.NONE
        own_tokens = request.prompt_tokens + request.max_tokens - request.known_tokens
        own_tokens = min(own_tokens, MOST_EXPECTED_TOKENS)
        expected = self._state.ratio.at(book.batch.iteration) * self._expected_outputs()
        future_pages = -(-(int(expected) + own_tokens) // size)
        blocked = now_pages + self._pending_pages() + future_pages > available
        return AdmissionBlock.KV_RESERVED if blocked else AdmissionBlock.NONE

    def _expected_outputs(self) -> int:
        """Tokens that running requests may still generate, `MOST_EXPECTED_TOKENS` each at most.

        The decode batch knows the sum only, so for it this is an upper bound.
        """
        book, most = self._book, MOST_EXPECTED_TOKENS
        total = min(book.batch.remaining_tokens(), most * len(book.batch))
        for place in (book.prefilling, book.joining, book.verifying, book.awaiting):
            if place:
                total += sum(
                    min(most, r.max_tokens - r.committed_outputs - r.pending_outputs)
                    for r in place.values()
                )
        return total

    def _pending_pages(self) -> int:
        """Pages that admitted prompts still lack."""
        size, prefilling = self._state.config.page_size, self._book.prefilling
        if not prefilling:
            return 0
        return sum(
            max(0, -(-request.known_tokens // size) - len(request.pages))
            for request in prefilling.values()
        )

    def pages_missing(self, request: Request, tokens: int) -> int:
        return max(0, -(-tokens // self._state.config.page_size) - len(request.pages))

    def lock_prefix(self, request: Request) -> PrefixMatch | None:
        if request.handoff == KVHandoff.RECEIVE:
            return None
        match = self._kv.match(request)
        if match is not None and self._kv.cache is not None:
            self._kv.cache.lock(match.node)
        return match

    def unlock_prefix(self, match: PrefixMatch | None) -> None:
        """Undo `lock_prefix` for a request that is not admitted."""
        if match is not None and self._kv.cache is not None:
            self._kv.cache.forget(match)
            self._kv.cache.unlock(match.node)

    def retract_one(self, now: int) -> bool:
        """Send back the running request that is cheapest to recompute, never the oldest."""
        victim = self.cheapest_running()
        if victim is None:
            return False
        self._state.memory_ran_out = True
        self._book.retract(victim, RetractReason.KV_PAGES, now)
        left = list(self._book.batch.members.values())
        generated = sum(self._book.output_tokens(r) for r in left)
        limits = sum(r.max_tokens for r in left)
        self._state.ratio.retracted(self._book.batch.iteration, generated, len(left), limits)
        return True

    def cheapest_running(self) -> Request | None:
        """The running request that is cheapest to recompute, never the oldest; None without one."""
        running = list(self._book.running_requests())
        if len(running) < 2:
            return None
        keep = min(running, key=lambda r: (-r.priority, r.sequence))
        return min(
            (request for request in running if request is not keep),
            key=lambda r: (
                r.priority, r.retractions, self._book.kv_committed(r) - r.cached_depth, -r.sequence
            ),
        )  # fmt: skip

    def blocks(self, request: Request) -> bool:
        match = self.lock_prefix(request)
        blocked = self.block_reason(request, len(match.pages) if match else 0)
        self.unlock_prefix(match)
        return bool(blocked)
