"""The small closed vocabularies that the core, its events and every report share.

Values are stored in run records: append new members, never renumber.
"""

from __future__ import annotations

from enum import IntEnum


class RequestStatus(IntEnum):
    """Where a request is in its life. `engine.core.request` holds the legal transitions."""

    WAITING = 0
    PREFILLING = 1
    DECODING = 2
    HOLDING_KV = 3  # prefilled here, KV waiting to be sent to another replica
    AWAITING_KV = 4  # admitted here, KV on its way from another replica
    FINISHED = 5


class FinishReason(IntEnum):
    """Why a request ended; exactly one per request."""

    NONE = 0  # still alive
    STOP = 1  # the model ended its text
    LENGTH = 2  # max_tokens or the model's context length was reached
    ABORT = 3  # the client gave up
    REJECTED = 4  # it could never be served; see RejectReason
    ERROR = 5  # the step that ran it failed
    TRANSFERRED = 6  # its KV was handed to another replica


class RejectReason(IntEnum):
    """Why a request could never be served."""

    NONE = 0
    EXCEEDS_KV_POOL = 1  # prompt + max_tokens need more pages than the pool has
    EXCEEDS_CONTEXT = 2  # prompt + max_tokens exceed max_model_len
    EXCEEDS_STEP_BUDGET = 3  # without chunked prefill, the prompt exceeds max_num_batched_tokens


class AdmissionBlock(IntEnum):
    """Why the head of the waiting queue was not admitted in a step."""

    NONE = 0  # nothing was waiting afterwards
    TOKEN_BUDGET = 1  # the step's tokens were spent on requests already running
    RUNNING_LIMIT = 2  # max_running_requests are running
    KV_PAGES = 3  # no pages for the prompt now
    KV_RESERVED = 4  # pages are there, but running requests are expected to need them
    RETRACTION = 5  # pages ran out in this step: running requests were sent back instead
    PREFILL_LIMIT = 6  # max_prefill_tokens of this step are spent


class ItemKind(IntEnum):
    """What a step does for one request."""

    PREFILL = 0
    DECODE = 1
    VERIFY = 2


class RequestEvent(IntEnum):
    """Lifecycle events of a request; `a` and `b` of each are listed."""

    ARRIVE = 0  # a: prompt tokens, b: max_tokens
    ADMIT = 1  # a: cached prefix tokens, b: tokens to prefill
    FIRST_TOKEN = 2
    RETRACT = 3  # a: computed tokens given up, b: RetractReason
    RESUME = 4  # a: cached prefix tokens, b: tokens to prefill again
    FINISH = 5  # a: FinishReason, b: output tokens
    REJECT = 6  # a: RejectReason
    HOLD_KV = 7
    AWAIT_KV = 8
    TRANSFER_DONE = 9  # a: transfer id, b: TransferStatus


class RetractReason(IntEnum):
    """Why a running request was sent back to the queue."""

    KV_PAGES = 0
    PRIORITY = 1
    STEP_FAILED = 2
    RUNNING_LIMIT = 3  # max_running_requests was lowered


class TransferStatus(IntEnum):
    """How a KV transfer ended."""

    OK = 0
    FAILED = 1
    TIMED_OUT = 2


class MemoryOp(IntEnum):
    """What happened to a run of KV pages."""

    ALLOC = 0
    FREE = 1
    CACHE = 2  # owner changed from a request to the prefix cache
    EVICT = 3  # left the prefix cache for the free list


class RadixOp(IntEnum):
    """What happened to a node of the prefix cache."""

    INSERT = 0
    SPLIT = 1
    TOUCH = 2
    LOCK = 3
    UNLOCK = 4
    EVICT = 5
    WITHDRAW = 6  # no number came of it: nobody matches it any more
