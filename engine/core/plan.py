"""What a scheduler decides for one step, and what a driver brings back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from engine.core.decode_batch import DecodeBatch
from engine.core.enums import AdmissionBlock, ItemKind
from engine.core.errors import PlanOrderError
from engine.core.request import Request


class PrefillItem(NamedTuple):
    """Compute the KV of `num_tokens` known tokens after `context_tokens` that are there already."""

    request: Request
    epoch: int
    num_tokens: int
    context_tokens: int
    samples: bool  # the last known token is among them: a new token comes out


class VerifyItem(NamedTuple):
    """Check `num_tokens - 1` drafted tokens; between 0 and `num_tokens` tokens come out.

    `context_tokens` is an upper bound while earlier plans are in flight.
    """

    request: Request
    epoch: int
    num_tokens: int
    context_tokens: int


class Item(NamedTuple):
    """One row of a step, for drivers that run it and for tests."""

    request: Request
    epoch: int
    kind: ItemKind
    num_tokens: int
    context_tokens: int


class TransferDirection(IntEnum):
    """Which way KV travels."""

    SEND = 0
    RECEIVE = 1


class Transfer(NamedTuple):
    """KV pages to move between replicas; answer with `Scheduler.transfer_done`."""

    transfer_id: int
    request_id: int
    direction: TransferDirection
    pages: tuple[int, ...]
    epoch: int
    deadline_ns: int


class StepPlan:
    """One step: prefill chunks, verify items, and the decode batch at one iteration.

    Decode members are listed only on demand (`items`), because a simulation never needs them.

    Attributes:
        plan_id: counts from 0 per scheduler.
        feeds_from: plan in flight whose sampled tokens this one consumes, or -1.
        decode_iteration: iteration of the decode batch, or -1 when it is not part of the step.
        decode_requests, decode_context, decode_max_context: size of the decode batch, sum and
            maximum of its KV lengths with this step's tokens; verify items are counted in.
        shared_context: KV tokens that requests share, once for each but one of them; a request that
            ended counts as long as a plan with it is in flight.
        decode_tokens: tokens computed for them.
        prefill_tokens, prefill_context, prefill_pairs: sums over `prefills` of new tokens, of
            tokens cached before, and of attended (query, key) pairs.
        prefill_max_context: the longest of them, new tokens included.
        sampled_tokens: rows of logits.
        graph_batch: CUDA Graph bucket that the step fits, 0 for an eager step.
        hit_tokens: prefix-cache hits of requests admitted by this plan.
        running, waiting, free_pages, cached_pages: counts after planning.
        block_reason: why the head of the queue was not admitted.
        retracted, evicted_pages: since the previous plan.
        transfers: KV transfers to start.
    """

    # Defaults are class attributes: a plan costs as much as what is in it.
    feeds_from = -1
    decode_iteration = -1
    decode_requests = 0
    decode_tokens = 0
    decode_context = 0
    decode_max_context = 0
    shared_context = 0
    prefill_tokens = 0
    prefill_context = 0
    prefill_pairs = 0
    prefill_max_context = 0
    sampled_tokens = 0
    graph_batch = 0
    hit_tokens = 0
    running = 0
    waiting = 0
    free_pages = 0
    cached_pages = 0
    retracted = 0
    evicted_pages = 0
    batch: DecodeBatch | None = None
    batch_version = -1
    _members: list[tuple[Request, int]] | None = None

    prefills: Sequence[PrefillItem] = ()
    verifies: Sequence[VerifyItem] = ()
    transfers: Sequence[Transfer] = ()

    def __init__(self, plan_id: int) -> None:
        self.plan_id = plan_id
        self.block_reason = AdmissionBlock.NONE

    @property
    def is_pure_decode(self) -> bool:
        """Whether the step is nothing but the decode batch."""
        return self.decode_iteration >= 0 and not (self.prefills or self.verifies)

    def decode_members(self) -> list[tuple[Request, int]]:
        """(request, epoch) of each member of the decode batch, in slot order.

        Raises:
            PlanOrderError: first read after the batch has changed; a driver that needs members
            reads
                them before it calls the scheduler again.
        """
        if self._members is None:
            if self.decode_iteration < 0 or self.batch is None:
                self._members = []
            elif self.batch.version != self.batch_version:
                raise PlanOrderError(
                    f"plan {self.plan_id}: its members must be read before the batch changes"
                )
            else:
                self._members = self.batch.snapshot()
        return self._members

    def items(self) -> list[Item]:
        """All rows of the step: prefill chunks, verify items, decode members."""
        rows = [Item(p[0], p[1], ItemKind.PREFILL, p[2], p[3]) for p in self.prefills]
        rows += [Item(v[0], v[1], ItemKind.VERIFY, v[2], v[3]) for v in self.verifies]
        before = self.decode_iteration - 1
        rows += [
            Item(r, epoch, ItemKind.DECODE, 1, r.offset + before)
            for r, epoch in self.decode_members()
        ]
        return rows

    def sampling_requests(self) -> list[tuple[Request, int]]:
        """(request, epoch) of each row of logits: finished prompts, then decode members.

        Verify items are apart: they bring back several tokens each.
        """
        rows = [(item.request, item.epoch) for item in self.prefills if item.samples]
        return rows + self.decode_members()

    def signature(self) -> tuple[int, ...]:
        """The decision as integers: equal signatures, equal decisions."""
        head = (
            self.plan_id, self.feeds_from, self.decode_iteration, self.decode_requests,
            self.decode_tokens, self.decode_context, self.decode_max_context, self.shared_context,
            self.sampled_tokens, self.graph_batch, self.hit_tokens, self.running, self.waiting,
            self.free_pages, self.cached_pages, int(self.block_reason), self.retracted,
            self.evicted_pages, len(self.prefills), len(self.verifies),
        )  # fmt: skip
        items: list[PrefillItem | VerifyItem] = [*self.prefills, *self.verifies]
        rows = [(i.request.request_id, i.num_tokens, i.context_tokens) for i in items]
        return head + tuple(number for row in rows for number in row)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came back from a step.

    Attributes:
        stopped: ids of requests whose new token ended their text.
        token_ids: one id per `StepPlan.sampling_requests()` row, or None in a simulation.
        verified: tokens kept per verify item, in plan order; each between 0 and its `num_tokens`.
        verified_ids: their ids, or None in a simulation.
        failed: the step did not happen; its requests are computed again.
        broken: ids of requests whose new token could not be computed (their logits were not
            numbers): they end with an error, without this token, and nothing that they had not
            shared before enters the prefix cache.
    """

    stopped: Sequence[int] = ()
    token_ids: Sequence[int] | None = None
    verified: Sequence[int] = ()
    verified_ids: Sequence[Sequence[int]] | None = None
    failed: bool = False
    broken: Sequence[int] = ()


OK = StepResult()
