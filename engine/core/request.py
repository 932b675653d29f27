"""A request and its life: what the core knows about it, and the legal changes of its status."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from engine.core.enums import FinishReason, RejectReason, RequestStatus
from engine.core.errors import IllegalTransitionError
from engine.core.radix_cache import RadixCache
from engine.core.radix_node import RadixNode
from engine.core.token_ids import TokenSource

_S = RequestStatus

LEGAL_TRANSITIONS: Final[dict[RequestStatus, frozenset[RequestStatus]]] = {
    _S.WAITING: frozenset({_S.PREFILLING, _S.AWAITING_KV, _S.FINISHED}),
    _S.PREFILLING: frozenset({_S.DECODING, _S.HOLDING_KV, _S.WAITING, _S.FINISHED}),
    _S.DECODING: frozenset({_S.WAITING, _S.FINISHED}),
    _S.HOLDING_KV: frozenset({_S.FINISHED}),
    _S.AWAITING_KV: frozenset({_S.DECODING, _S.WAITING, _S.FINISHED}),
    _S.FINISHED: frozenset(),
}


_LEGAL_MASKS: Final = [
    sum(1 << after for after in LEGAL_TRANSITIONS[before]) for before in RequestStatus
]


class KVHandoff(IntEnum):
    """Whether a request's KV cache crosses replicas."""

    NONE = 0  # prefill and decode here
    SEND = 1  # prefill here, then send the KV away
    RECEIVE = 2  # the KV of the prompt arrives from elsewhere; the first token is known


class Request:
    """One request as the scheduler sees it. The model's true output length is not here.

    Token counts, smallest to largest: *committed* KV (its step came back), *scheduled* KV (a plan
    computes it), *reserved* slots (`len(pages) * page_size`). `known_tokens` are those whose ids
    are decided when a prefill (re)starts: the prompt, and after a retraction also the output so
    far.

    Attributes:
        request_id: unique in the run.
        prompt_tokens, max_tokens: lengths in tokens, both at least 1.
        priority: larger is more urgent.
        tenant: namespace of the prefix cache.
        tokens: ids of prompt and output, or None: nobody else can share any of its text.
        own_text: without `tokens`, the name of its text in the prefix cache; b"" before it is
            there. A request is known to one cache only.
        handoff: whether KV crosses replicas.
        status, epoch: `epoch` grows whenever results in flight become void; a scheduler uses each
            value once, so (id, epoch) is unique even if ids are not.
        sequence: order of arrival at this scheduler.
        pages: KV pages by position, shared prefix first.
        node: the locked node of the prefix cache, whose depth is `cached_depth` tokens.
        scheduled_tokens: KV entries computed or being computed; while DECODING the decode batch
            counts instead (see `DecodeBatch.context_tokens_of`).
        committed_tokens: KV entries whose step came back; same remark.
    """

    # Most requests never change most of these, so they start as class attributes: a simulation
    # creates requests by the hundred thousand.
    priority = 0
    tenant = 0
    tokens: TokenSource | None = None
    parent = -1
    client_wait_ns = 0

    epoch = 0
    sequence = -1
    bypassed = 0  # times a later request was admitted while this one was the oldest
    failures = 0  # steps that failed with it
    # Which cache was asked last for this request's prefix, at what version of it, for how many
    # known tokens, and how many it had.
    peek: tuple[RadixCache | None, int, int, int] = (None, -1, 0, 0)

    own_text = b""
    node: RadixNode | None = None
    cached_depth = 0
    scheduled_tokens = 0
    committed_tokens = 0
    committed_outputs = 0
    pending_outputs = 0  # most tokens that plans in flight may bring (prefill, verify)
    lost_tokens = 0  # KV entries given up by the last retraction
    last_plan_id = -1  # the newest plan with it, as long as it is not in the decode batch

    # Set by the decode batch while DECODING.
    offset = 0  # KV tokens after iteration i = offset + i
    span_first = -1  # first iteration of the present stay, -1: none
    span_last = -1  # last iteration planned with it, -1: still in the batch
    span_token_ns = -1  # when the prefill before it was committed

    arrival_ns = -1
    admitted_ns = -1
    first_token_ns = -1
    finish_ns = -1
    cached_tokens = 0
    retractions = 0
    recomputed_tokens = 0

    def __init__(
        self,
        request_id: int,
        prompt_tokens: int,
        max_tokens: int,
        *,
        priority: int = 0,
        tenant: int = 0,
        tokens: TokenSource | None = None,
        handoff: KVHandoff = KVHandoff.NONE,
        parent: int = -1,
        client_wait_ns: int = 0,
    ) -> None:
        if prompt_tokens < 1 or max_tokens < 1:
            raise ValueError(
                f"request {request_id}: prompt_tokens={prompt_tokens} and max_tokens={max_tokens} "
                "must both be at least 1"
            )
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.known_tokens = prompt_tokens
        self.pages: list[int] = []
        self.status = RequestStatus.WAITING
        self.handoff = handoff
        self.finish_reason = FinishReason.NONE
        self.reject_reason = RejectReason.NONE
        if priority:
            self.priority = priority
        if tenant:
            self.tenant = tenant
        if tokens is not None:
            self.tokens = tokens
        if parent >= 0:
            self.parent = parent
        if client_wait_ns:
            self.client_wait_ns = client_wait_ns

    @property
    def max_kv_tokens(self) -> int:
        """KV slots it can ever fill: the last token's KV is never written."""
        return self.prompt_tokens + self.max_tokens - 1

    @property
    def prefill_left(self) -> int:
        """Known tokens whose KV no plan computes yet."""
        return self.known_tokens - self.scheduled_tokens

    def move_to(self, status: RequestStatus) -> None:
        """Change status.

        Raises:
            IllegalTransitionError: `status` may not follow the present one.
        """
        if not _LEGAL_MASKS[self.status] >> status & 1:
            raise IllegalTransitionError(
                f"request {self.request_id}: {self.status.name} -> {status.name}"
            )
        self.status = status

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id}, {self.status.name}, prompt={self.prompt_tokens}, "
            f"max_tokens={self.max_tokens}, scheduled={self.scheduled_tokens})"
        )
