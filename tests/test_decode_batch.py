"""The decode batch's sums and calendars against counting every member anew."""

from __future__ import annotations

from core_harness import machine_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.decode_batch import DecodeBatch
from engine.core.request import Request


class BatchMachine(RuleBasedStateMachine):
    """Members join, decode, get pages, leave and come back; the model keeps plain lengths."""

    @initialize(page_size=st.sampled_from([1, 2, 4, 16]))
    def start(self, page_size: int) -> None:
        self.size = page_size
        self.batch = DecodeBatch(page_size)
        self.lengths: dict[int, int] = {}  # KV tokens of each member, in order of joining
        self.away: list[Request] = []
        self.next_id = 0

    def _put(self, request: Request, length: int, spare_pages: int = 0) -> None:
        request.scheduled_tokens = length
        request.pages = [0] * (-(-length // self.size) + spare_pages)
        self.batch.join(request)
        self.lengths[request.request_id] = length

    @rule(prompt=st.integers(1, 20), max_tokens=st.integers(2, 20), spare_pages=st.integers(0, 1))
    def join(self, prompt: int, max_tokens: int, spare_pages: int) -> None:
        self._put(Request(self.next_id, prompt, max_tokens), prompt, spare_pages)
        self.next_id += 1

    @precondition(lambda self: self.away)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        request = self.away.pop(data.draw(st.integers(0, len(self.away) - 1)))
        self._put(request, data.draw(st.integers(1, request.max_kv_tokens - 1)))

    @precondition(lambda self: self.lengths)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        request = self.batch.members[data.draw(st.sampled_from(sorted(self.lengths)))]
        self.batch.leave(request)
        request.epoch += 1
        del self.lengths[request.request_id]
        self.away.append(request)

    @precondition(lambda self: self.lengths)
    @rule(steps=st.integers(1, 5))
    def decode(self, steps: int) -> None:
        """Iterations with all pages that they need; whoever is at its limit leaves before each."""
        for _ in range(steps):
            done = [i for i, n in self.lengths.items() if n == self._member(i).max_kv_tokens]
            assert sorted(r.request_id for r in self.batch.pop_finished()) == sorted(done)
            for request_id in done:
                del self.lengths[request_id]
            if not self.lengths:
                return
            iteration = self.batch.iteration + 1
            need = {
                i for i, n in self.lengths.items() if n == len(self._member(i).pages) * self.size
            }
            crossing = self.batch.crossing(iteration)
            assert set(crossing) == need
            for request in crossing.values():
                request.pages.append(0)
            if crossing:
                self.batch.page_given(iteration)
            self.batch.iteration = iteration
            for request_id in self.lengths:
                self.lengths[request_id] += 1

    def _member(self, request_id: int) -> Request:
        return self.batch.members[request_id]

    @invariant()
    def equal_to_the_model(self) -> None:
        batch, now = self.batch, self.batch.iteration
        assert list(batch.members) == list(self.lengths)
        assert len(batch) == len(self.lengths)
        longest = max(self.lengths.values(), default=0)
        assert batch.max_context_tokens(now) == longest
        assert batch.context_tokens(now) == sum(self.lengths.values())
        assert batch.context_tokens(now + 3) == sum(n + 3 for n in self.lengths.values())
        if self.lengths:
            total = sum(self.lengths.values()) + len(self.lengths)
            assert batch.sums(now + 1) == (len(self.lengths), total, longest + 1)
        left = [self._member(i).max_kv_tokens - n for i, n in self.lengths.items()]
        assert batch.remaining_tokens() == sum(left)
        assert batch.next_limit() == (now + min(left) if left else None)
        ahead = [len(self._member(i).pages) * self.size - n + 1 for i, n in self.lengths.items()]
        assert batch.pages_within(self.size) == [ahead.count(i + 1) for i in range(self.size)]
        assert batch.snapshot() == [(r, r.epoch) for r in batch.members.values()]


class TestBatch(BatchMachine.TestCase):
    """A batch equals its model after any sequence of joins, leaves and iterations."""

    settings = machine_settings(120, steps=30)


def test_a_stay_is_told_by_its_first_and_last_iteration() -> None:
    """A member takes part from the iteration after it joined to the one before it left."""
    batch, request = DecodeBatch(16), Request(0, 5, 9)
    request.scheduled_tokens, request.pages = 5, [0]
    batch.iteration = 7
    batch.join(request)
    batch.iteration = 10
    batch.leave(request)
    assert (request.span_first, request.span_last) == (8, 10)


def test_stale_heap_entries_do_not_pile_up() -> None:
    """A member that comes and goes ten thousand times leaves a bounded number of entries."""
    batch, request = DecodeBatch(16), Request(0, 5, 9)
    request.scheduled_tokens, request.pages = 5, [0]
    for _ in range(10_000):
        batch.join(request)
        batch.leave(request)
        request.epoch += 1
    assert len(batch.limits) <= 1024 + 4
    batch.join(request)
    assert batch.next_limit() == batch.limit_of(request)
