"""What surrounds a scheduler in tests: a model, a device that stores KV in pages, and links.

The model's next token is a function of the KV entry of the last position, and each KV entry is a
function of the one before it, read through the page table of the step. So a wrong, stale or shared
page that should not be shared changes the text, and the device says at once which entry is wrong.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from engine.core.enums import ItemKind, TransferStatus
from engine.core.plan import StepPlan, StepResult, Transfer, TransferDirection
from engine.core.request import KVHandoff, Request
from engine.core.scheduler import Scheduler
from engine.core.token_ids import TokenBuffer

POISON = -1  # KV of a page that nobody owns
GARBAGE = -2  # KV that a failed or rejected computation left behind
STALE_ID = -7  # what a driver reports for a row whose request has moved on
OUTPUT_LETTERS = 3


class DeviceError(AssertionError):
    """A step read or wrote KV that it should not have."""


def first_state(tenant: int) -> int:
    """The state before the first token; texts of different tenants differ from the start."""
    return 7919 * (tenant + 1)


def next_state(state: int, token: int) -> int:
    """The KV entry of a token after a prefix."""
    return ((state ^ (token + 1)) * 0x5851F42D4C957F2D + 0x14057B7EF767814F) % (1 << 61)


def next_token(state: int) -> int:
    """The token that follows a prefix."""
    return (state >> 20) % OUTPUT_LETTERS


@dataclass(frozen=True)
class Ask:
    """One request as its client and its model know it.

    Attributes:
        stop_after: outputs after which the model ends the text by itself.
    """

    request_id: int
    prompt: tuple[int, ...]
    max_tokens: int
    stop_after: int
    priority: int = 0
    tenant: int = 0
    handoff: KVHandoff = KVHandoff.NONE

    @property
    def output_length(self) -> int:
        """Tokens of an undisturbed answer."""
        return min(self.stop_after, self.max_tokens)

    def text(self, outputs: int) -> list[int]:
        """Prompt and the first `outputs` tokens of the answer, with nobody else around."""
        state, text = first_state(self.tenant), list(self.prompt)
        for token in self.prompt:
            state = next_state(state, token)
        for _ in range(outputs):
            text.append(next_token(state))
            state = next_state(state, text[-1])
        return text

    def buffer(self) -> TokenBuffer:
        """The ids that come with the request: a received request knows its first output."""
        return TokenBuffer(self.text(1 if self.handoff == KVHandoff.RECEIVE else 0))

    def request(self) -> Request:
        """A fresh request for a scheduler."""
        return Request(
            self.request_id,
            len(self.prompt),
            self.max_tokens,
            priority=self.priority,
            tenant=self.tenant,
            tokens=self.buffer(),
            handoff=self.handoff,
        )


@dataclass
class Row:
    """One request's part of a launched step, with its page table as it was at launch.

    Attributes:
        bound: positions below it may be touched.
        private: positions from there on nobody else could read at launch.
    """

    request: Request
    epoch: int
    kind: ItemKind
    num_tokens: int
    context: int
    table: tuple[int, ...]
    bound: int
    private: int

    @property
    def key(self) -> tuple[int, int]:
        """The text it extends."""
        return self.request.request_id, self.epoch


@dataclass
class Launched:
    """A step on the device, done or not."""

    plan: StepPlan
    rows: list[Row]
    fails: bool
    result: StepResult | None = None


@dataclass
class Text:
    """A request's tokens on the device and the KV states they should have."""

    tokens: list[int]
    states: list[int]

    @classmethod
    def of(cls, request: Request) -> Text:
        tokens: TokenBuffer = request.tokens
        text = cls([], [first_state(request.tenant)])
        for token in tokens.ids(0, len(tokens)).tolist():
            text.append(token)
        return text

    def append(self, token: int) -> None:
        """Go on by a token."""
        self.tokens.append(token)
        self.states.append(next_state(self.states[-1], token))


class FakeDevice:
    """Runs launched steps in order, at their commit at the latest, and checks all KV they read.

    Attributes:
        nan_rate: how often a row comes out as no number, together with what it computed.
    """

    def __init__(self, num_pages: int, page_size: int, seed: int) -> None:
        self.page_size = page_size
        self.kv = [[POISON] * page_size for _ in range(num_pages)]
        self.in_flight: list[Launched] = []
        self.texts: dict[tuple[int, int], Text] = {}
        self.broken: set[tuple[int, int]] = set()
        self.stop_after: dict[int, int] = {}
        self.nan_rate = 0.0
        self._rng = random.Random(seed)
        self._free: set[int] = set(range(num_pages))

    def launch(self, plan: StepPlan, fails: bool = False) -> Launched:
        """Take over a plan at the moment it was made."""
        rows = []
        for item in plan.items():
            request, end = item.request, item.context_tokens + item.num_tokens
            row = Row(request, item.epoch, item.kind, item.num_tokens, item.context_tokens,
                      tuple(request.pages), end, request.cached_depth)  # fmt: skip
            if end > len(row.table) * self.page_size:
                raise DeviceError(f"plan {plan.plan_id}: {request} has no slot for token {end - 1}")
            if row.key not in self.texts:
                self.texts[row.key] = Text.of(request)
            rows.append(row)
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
        for page in now - self._free:
            self.kv[page] = [POISON] * self.page_size
        self._free = now

    def touched(self, row: Row) -> set[int]:
        """Pages that a step in flight may still touch for a row."""
        return set(row.table[: -(-row.bound // self.page_size)])

    def expect(self, pages: Sequence[int], states: Sequence[int], what: str) -> None:
        """Check that the KV of a prefix is in `pages`."""
        size = self.page_size
        for at in range(0, len(states), size):
            wanted = list(states[at : at + size])
            found = self.kv[pages[at // size]][: len(wanted)]
            if found != wanted:
                bad = next(i for i, state in enumerate(wanted) if found[i] != state)
                kind = {POISON: "freed", GARBAGE: "garbage"}.get(found[bad], "someone else's")
                raise DeviceError(
                    f"{what}: KV of position {at + bad} in page {pages[at // size]} is {kind}"
                )

    def write(self, pages: Sequence[int], start: int, states: Sequence[int]) -> None:
        """Store KV entries from position `start` on."""
        for position, state in enumerate(states, start):
            self.kv[pages[position // self.page_size]][position % self.page_size] = state

    def _give_up_slots(self, launched: Launched) -> None:
        """Later steps start where accepted drafts end, so they leave as many slots alone."""
        result = launched.result
        if result is None or result.failed:
            return
        verifies = [row for row in launched.rows if row.kind == ItemKind.VERIFY]
        for row, kept in zip(verifies, result.verified, strict=True):
            for later in (r for step in self.in_flight for r in step.rows):
                if later.key == row.key:
                    later.bound -= row.num_tokens - kept

    def _execute(self, launched: Launched) -> None:
        if launched.result is not None:
            return
        if launched.fails:
            for row in launched.rows:
                self.broken.add(row.key)
                self._spoil(row)
            launched.result = StepResult(failed=True)
            return
        ids: list[int] = []
        stopped: list[int] = []
        nans: list[int] = []
        kept: list[list[int]] = []
        samples = {id(i.request) for i in launched.plan.prefills if i.samples}
        for row in launched.rows:
            if row.key in self.broken:
                self._spoil(row)
                new, counts = [STALE_ID], True
                if row.kind == ItemKind.PREFILL:
                    counts = id(row.request) in samples
            elif row.kind == ItemKind.VERIFY:
                new, counts = self._verify(row), True
            else:
                new, counts = self._compute(launched.plan, row, id(row.request) in samples)
                if counts and self.nan_rate and self._rng.random() < self.nan_rate:
                    self._lose(row)
                    new = [-1]
                    nans.append(row.request.request_id)
            if row.kind == ItemKind.VERIFY:
                kept.append([] if row.key in self.broken else new)
            elif counts:
                ids.append(new[0])
            if self._ends(row):
                stopped.append(row.request.request_id)
        verifies = launched.plan.verifies
        launched.result = StepResult(
            stopped=stopped,
            token_ids=ids,
            verified=[len(row) for row in kept],
            verified_ids=kept if verifies else None,
            broken=nans,
        )

    def _lose(self, row: Row) -> None:
        """A row is no number, and neither is what a prompt computed before, as far as it may be."""
        self.broken.add(row.key)
        self._spoil(row)
        if row.kind == ItemKind.PREFILL:
            self.write(row.table, row.private, [GARBAGE] * (row.bound - row.private))

    def _spoil(self, row: Row) -> None:
        """Leave garbage where a row may write."""
        self.write(row.table, row.bound - row.num_tokens, [GARBAGE] * row.num_tokens)

    def _ends(self, row: Row) -> bool:
        """Whether the model says that this text is over (it may say so more than once).

        A text that was computed from garbage may end anywhere.
        """
        if row.key in self.broken:
            return self._rng.random() < 0.5
        request = row.request
        outputs = len(self.texts[row.key].tokens) - request.prompt_tokens
        return outputs >= self.stop_after[request.request_id]

    def _compute(self, plan: StepPlan, row: Row, samples: bool) -> tuple[list[int], bool]:
        """A prefill chunk or a decode step; (new token or nothing, whether it counts)."""
        text, end = self.texts[row.key], row.context + row.num_tokens
        what = f"plan {plan.plan_id}, {row.request}"
        if row.kind == ItemKind.DECODE:
            samples = True
        if (end == len(text.tokens)) != samples or end > len(text.tokens):
            raise DeviceError(
                f"{what}: computes up to {end} of {len(text.tokens)} tokens, {samples=}"
            )
        self.expect(row.table, text.states[1 : row.context + 1], what)
        self.write(row.table, row.context, text.states[row.context + 1 : end + 1])
        if not samples:
            return [], False
        text.append(next_token(text.states[end]))
        return [text.tokens[-1]], True

    def _verify(self, row: Row) -> list[int]:
        """Check drafts of which some random first ones are right; the tokens that are kept."""
        text, what = self.texts[row.key], f"verify {row.request}"
        start = len(text.tokens) - 1
        if start > row.context:
            raise DeviceError(
                f"{what}: {start} tokens of KV, the plan allows {row.context} at most"
            )
        self.expect(row.table, text.states[1 : start + 1], what)
        count = self._rng.choice([0, row.num_tokens, self._rng.randint(1, row.num_tokens)])
        limit = self.stop_after[row.request.request_id] + row.request.prompt_tokens
        new: list[int] = []
        while len(new) < count and len(text.tokens) < limit:
            new.append(next_token(text.states[-1]))
            text.append(new[-1])
        good = text.states[start + 1 : len(text.tokens)] or [GARBAGE]
        self.write(row.table, start, [*good, *[GARBAGE] * (row.num_tokens - len(good))])
        return new


@dataclass
class Trip:
    """A KV transfer under way.

    Attributes:
        status: how it ends; None: it is lost, and its end is told after its deadline.
        notices: how often its end will be told.
    """

    transfer: Transfer
    ask: Ask
    status: TransferStatus | None
    notices: int
    told: bool = False


@dataclass
class FakeLinks:
    """Moves KV in and out of leased pages, sometimes failing, late, twice or never."""

    device: FakeDevice
    rng: random.Random
    faults: bool
    trips: list[Trip] = field(default_factory=list)

    def start(self, transfer: Transfer, ask: Ask) -> None:
        """A plan asks for a transfer."""
        status: TransferStatus | None = TransferStatus.OK
        if self.faults:
            ok, failed = TransferStatus.OK, TransferStatus.FAILED
            status = self.rng.choice([ok, ok, failed, None])
        self.trips.append(Trip(transfer, ask, status, self.rng.choice([1, 1, 2])))

    def scribble(self, now: int) -> None:
        """Data of transfers under way arrive in part."""
        for trip in self.trips:
            transfer = trip.transfer
            alive = trip.status is not None and not trip.told and now < transfer.deadline_ns
            if alive and transfer.direction == TransferDirection.RECEIVE:
                size = len(transfer.pages) * self.device.page_size
                self.device.write(transfer.pages, 0, [GARBAGE] * size)

    def finish_one(self, scheduler: Scheduler, now: int) -> Request | None:
        """Tell the end of one transfer, if it is due."""
        trip = self.rng.choice(self.trips)
        transfer, status = trip.transfer, trip.status
        late = now >= transfer.deadline_ns
        if status is None and not late:
            return None
        if not trip.told:
            leased = transfer.transfer_id in scheduler.kv.pool.leases()
            if not (leased or late):
                raise DeviceError(f"the lease of transfer {transfer.transfer_id} ended too early")
            if leased and status != TransferStatus.FAILED:
                self._move(trip)
        trip.told = True
        trip.notices -= 1
        if trip.notices <= 0:
            self.trips.remove(trip)
        status = TransferStatus.OK if status is None else status
        return scheduler.transfer_done(transfer.transfer_id, status, now)

    def _move(self, trip: Trip) -> None:
        transfer, states = trip.transfer, [first_state(trip.ask.tenant)]
        for token in trip.ask.prompt:
            states.append(next_state(states[-1], token))
        if transfer.direction == TransferDirection.SEND:
            self.device.expect(transfer.pages, states[1:], f"transfer {transfer.transfer_id}")
        else:
            self.device.write(transfer.pages, 0, states[1:])
