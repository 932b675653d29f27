"""A device that stores KV in pages, runs steps late, fails on demand, and checks all that it reads.

A page that becomes free is poisoned; a computation that failed or was rejected leaves garbage. KV
may also come out as no number; nobody notices that before a token is sampled of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from engine.core.enums import ItemKind
from engine.core.plan import StepPlan, StepResult
from engine.core.request import Request
from engine.core.token_ids import TokenBuffer
from workbench.fuzz.draws import chance, draw
from workbench.fuzz.fake_model import Ask, Story

POISON: Final = -1  # KV of a page that nobody owns
GARBAGE: Final = -2  # KV that a failed or rejected computation left behind
NAN: Final = -3  # KV that holds no number; so does whatever is computed of it
_CHUNK_NAN_FACTOR: Final = 24.0  # unnoticed as it is, it matters to few runs
STALE_ID: Final = -7  # what a driver reports for a row whose request has moved on


class DeviceError(AssertionError):
    """A step read or wrote KV that it should not have."""


class Row:
    """One request's part of a launched step, with its page table as it was at launch.

    Attributes:
        bound: positions below it may be touched.
    """

    __slots__ = (
        "bound", "context", "epoch", "key", "kind", "num_tokens", "request", "samples", "table",
    )  # fmt: skip

    def __init__(
        self, request: Request, epoch: int, kind: ItemKind, num_tokens: int, context: int,
        samples: bool,
    ) -> None:  # fmt: skip
        self.request = request
        self.epoch = epoch
        self.key = (request.request_id, epoch)
        self.kind = kind
        self.num_tokens = num_tokens
        self.context = context
        self.samples = samples
        self.table = tuple(request.pages)
        self.bound = context + num_tokens


class Launched:
    """A step on the device, done or not; `plan_ns` is when it was planned, if anybody asks."""

    __slots__ = ("fails", "plan", "plan_ns", "result", "rows")

    def __init__(self, plan: StepPlan, rows: list[Row], fails: bool) -> None:
        self.plan_ns = 0
        self.plan = plan
        self.rows = rows
        self.fails = fails
        self.result: StepResult | None = None

    def step_row(self, end_ns: int, replica: int) -> tuple[int, ...]:
        """Its row of the `steps` table; the device took all the time since the plan."""
        p, start_ns = self.plan, self.plan_ns
        return (
            p.plan_id, replica, start_ns, start_ns, end_ns, end_ns - start_ns, 0,
            p.prefill_tokens, len(p.prefills), p.prefill_context, p.prefill_pairs,
            p.prefill_max_context,
            p.decode_requests, p.decode_tokens, p.decode_context, p.decode_max_context,
            p.shared_context, p.sampled_tokens, p.hit_tokens, p.graph_batch, p.running, p.waiting,
            p.block_reason,
            p.free_pages, p.cached_pages, p.retracted, p.evicted_pages, p.decode_iteration, 0,
        )  # fmt: skip


class FakeDevice:
    """Runs launched steps in order, at their commit at the latest.

    Attributes:
        kv: what each slot of each page holds.
        in_flight: steps launched and not taken.
        nan_rate: how often a row computes no number.
        stories: the text of each request it has heard of.
        lengths: tokens of the text that an (request id, epoch) has come to.
    """

    def __init__(self, num_pages: int, page_size: int, seed: int) -> None:
        self.page_size = page_size
        self.kv = [[POISON] * page_size for _ in range(num_pages)]
        self.in_flight: list[Launched] = []
        self.nan_rate = 0.0
        self.stories: dict[int, Story] = {}
        self.lengths: dict[tuple[int, int], int] = {}
        self._broken: set[tuple[int, int]] = set()
        self._turns: dict[int, int] = {}
        self._seed = seed
        self._free: set[int] = set(range(num_pages))

    def know(self, ask: Ask) -> None:
        """A request will be among the rows."""
        self.stories[ask.request_id] = Story(ask)

    def launch(self, plan: StepPlan, fails: bool = False) -> Launched:
        """Take over a plan at the moment it was made."""
        rows = [
            Row(p.request, p.epoch, ItemKind.PREFILL, p.num_tokens, p.context_tokens, p.samples)
            for p in plan.prefills
        ]
        rows += [
            Row(v.request, v.epoch, ItemKind.VERIFY, v.num_tokens, v.context_tokens, True)
            for v in plan.verifies
        ]
        before = plan.decode_iteration - 1
        rows += [
            Row(request, epoch, ItemKind.DECODE, 1, request.offset + before, True)
            for request, epoch in plan.decode_members()
        ]
        for row in rows:
            if row.bound > len(row.table) * self.page_size:
                raise DeviceError(
                    f"plan {plan.plan_id}: {row.request} has no slot for token {row.bound - 1}"
                )
            if row.key not in self.lengths:
                self._begin(row)
        launched = Launched(plan, rows, fails)
        self.in_flight.append(launched)
        return launched

    def run_some(self, count: int) -> None:
        """Execute the first `count` steps in flight, if they are not done yet."""
        for launched in self.in_flight[:count]:
            self._execute(launched)

    def take(self) -> Launched:
        """The oldest step, executed."""
        launched = self.in_flight.pop(0)
        self._execute(launched)
        self._give_up_slots(launched)
        return launched

    def pages_freed(self, free: Iterable[int]) -> None:
        """Poison pages that became free."""
        now = set(free)
        if now != self._free:
            for page in now - self._free:
                self.kv[page] = [POISON] * self.page_size
            self._free = now

    def touched(self, row: Row) -> set[int]:
        """Pages that a step in flight may still touch for a row."""
        return set(row.table[: -(-row.bound // self.page_size)])

    def expect(self, pages: Sequence[int], states: Sequence[int], what: str) -> None:
        """Check that the KV of a prefix is in `pages`.

        Raises:
            DeviceError: it is not; the message says what is.
        """
        if not self.holds_numbers(pages, states, what):
            raise DeviceError(f"{what}: KV is no number")

    def holds_numbers(self, pages: Sequence[int], states: Sequence[int], what: str) -> bool:
        """Check that the KV of a prefix is in `pages`; False if some of it came out as no number.

        Raises:
            DeviceError: it is something else; the message says what.
        """
        size, kv, numbers = self.page_size, self.kv, True
        for index, at in enumerate(range(0, len(states), size)):
            wanted = states[at : at + size]
            found = kv[pages[index]]
            if found != wanted and found[: len(wanted)] != wanted:
                bad = next((i for i, s in enumerate(wanted) if found[i] not in (s, NAN)), None)
                if bad is None:
                    numbers = False
                    continue
                kind = {POISON: "freed", GARBAGE: "garbage"}.get(found[bad], "someone else's")
                raise DeviceError(
                    f"{what}: KV of position {at + bad} in page {pages[index]} is {kind}"
                )
        return numbers

    def without_numbers(self, pages: Iterable[int]) -> set[int]:
        """Those of `pages` that hold KV which is no number."""
        return {page for page in pages if NAN in self.kv[page]}

    def write(self, pages: Sequence[int], start: int, states: Sequence[int]) -> None:
        """Store KV entries from position `start` on."""
        size, kv = self.page_size, self.kv
        for position, state in enumerate(states, start):
            kv[pages[position // size]][position % size] = state

    def _begin(self, row: Row) -> None:
        """First sight of a request in this epoch: the scheduler must know its text as it is."""
        request, tokens = row.request, row.request.tokens
        story = self.stories[request.request_id]
        count = len(tokens) if isinstance(tokens, TokenBuffer) else request.known_tokens
        story.grow_to(count)
        if tokens is not None and tokens.ids(0, count).tolist() != story.tokens[:count]:
            raise DeviceError(f"{request}: the scheduler holds another text than was generated")
        self.lengths[row.key] = count

    def _give_up_slots(self, launched: Launched) -> None:
        """Later steps start where accepted drafts end, so they leave as many slots alone."""
        result = launched.result
        if result is None or result.failed or not launched.plan.verifies:
            return
        verifies = [row for row in launched.rows if row.kind == ItemKind.VERIFY]
        for row, kept in zip(verifies, result.verified, strict=True):
            for later in (r for step in self.in_flight for r in step.rows):
                if later.key == row.key:
                    later.bound -= row.num_tokens - kept

    def _execute(self, launched: Launched) -> None:
        if launched.result is not None:
            return
        self._check_writes(launched)
        if launched.fails:
            for row in launched.rows:
                self._broken.add(row.key)
                self._spoil(row)
            launched.result = StepResult(failed=True)
            return
        ids: list[int] = []
        stopped: list[int] = []
        nans: list[int] = []
        kept: list[list[int]] = []
        for row in launched.rows:
            request_id = row.request.request_id
            turn = self._turns[request_id] = self._turns.get(request_id, 0) + 1
            if row.kind == ItemKind.VERIFY:
                kept.append(self._verify(row, turn))
            elif token := self._token(launched.plan, row, turn, nans):
                ids += token
            if self._ends(row, turn):
                stopped.append(request_id)
        launched.result = StepResult(
            stopped=stopped,
            token_ids=ids,
            verified=[len(row) for row in kept],
            verified_ids=kept if launched.plan.verifies else None,
            broken=nans,
        )

    def _check_writes(self, launched: Launched) -> None:
        """No row writes to a page that is free, whatever has become of its request."""
        size = self.page_size
        for row in launched.rows:
            first = max(0, row.bound - row.num_tokens) // size
            written = row.table[first : -(-row.bound // size)]
            if not self._free.isdisjoint(written):
                raise DeviceError(
                    f"plan {launched.plan.plan_id}: {row.request} writes to free pages"
                )

    def _token(self, plan: StepPlan, row: Row, turn: int, nans: list[int]) -> list[int]:
        """The new token of a prefill or decode row, if it samples."""
        if row.key in self._broken:
            self._spoil(row)
            return [STALE_ID] if row.samples else []
        numbers, new = self._compute(plan, row)
        rate = self.nan_rate if new else _CHUNK_NAN_FACTOR * self.nan_rate
        if numbers and not (rate and chance(rate, self._seed, row.key[0], turn)):
            return new
        if not new:  # nobody notices
            self.write(row.table, row.context, [NAN] * row.num_tokens)
            return []
        self._broken.add(row.key)
        self._spoil(row)
        nans.append(row.request.request_id)
        return [-1]

    def _spoil(self, row: Row) -> None:
        """Leave garbage where a row may write."""
        self.write(row.table, row.bound - row.num_tokens, [GARBAGE] * row.num_tokens)

    def _ends(self, row: Row, turn: int) -> bool:
        """Whether the model says that this text is over (it may say so more than once).

        A text that was computed from garbage may end anywhere.
        """
        if row.key in self._broken:
            return bool(draw(self._seed, row.key[0], turn, 1) & 1)
        story = self.stories[row.key[0]]
        return self.lengths[row.key] - story.prompt_tokens >= story.ask.stop_after

    def _compute(self, plan: StepPlan, row: Row) -> tuple[bool, list[int]]:
        """A prefill chunk or a decode step: whether all it read are numbers, and its new token."""
        length, end, context = self.lengths[row.key], row.context + row.num_tokens, row.context
        if (end == length) != row.samples or end > length:
            raise DeviceError(
                f"plan {plan.plan_id}, {row.request}: computes up to {end} of {length} tokens, "
                f"samples={row.samples}"
            )
        story, numbers = self.stories[row.key[0]], True
        if context:
            what = f"plan {plan.plan_id}, request {row.key[0]}"
            numbers = self.holds_numbers(row.table, story.states[1 : context + 1], what)
        self.write(row.table, context, story.states[context + 1 : end + 1])
        if not row.samples:
            return numbers, []
        story.grow_to(length + 1)
        self.lengths[row.key] = length + 1
        return numbers, [story.tokens[length]]

    def _verify(self, row: Row, turn: int) -> list[int]:
        """Check drafts of which some random first ones are right; the tokens that are kept."""
        if row.key in self._broken:
            self._spoil(row)
            return []
        story, length = self.stories[row.key[0]], self.lengths[row.key]
        start = length - 1
        if start > row.context:
            raise DeviceError(
                f"verify {row.request}: {start} tokens of KV, the plan allows {row.context} at most"
            )
        self.expect(row.table, story.states[1 : start + 1], f"verify {row.request}")
        right = draw(self._seed, row.key[0], turn, 2)
        count = (0, row.num_tokens, 1 + right // 3 % row.num_tokens)[right % 3]
        most = story.ask.stop_after + story.prompt_tokens
        after = max(length, min(length + count, most))
        story.grow_to(after)
        good = story.states[start + 1 : after] or [GARBAGE]
        self.write(row.table, start, [*good, *[GARBAGE] * (row.num_tokens - len(good))])
        self.lengths[row.key] = after
        return story.tokens[length:after]
