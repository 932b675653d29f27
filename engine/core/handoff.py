"""KV that crosses replicas: prompts computed here and sent away, or computed elsewhere."""

from __future__ import annotations

from engine.core.enums import (
    FinishReason,
    RequestEvent,
    RequestStatus,
    RetractReason,
    TransferStatus,
)
from engine.core.memory_policy import MemoryPolicy
from engine.core.plan import StepPlan, TransferDirection
from engine.core.request import KVHandoff, Request
from engine.core.scheduler_state import SchedulerState


class Handoff:
    """Starts KV transfers, waits for them and takes in how they ended."""

    def __init__(self, state: SchedulerState, memory: MemoryPolicy) -> None:
        self._state = state
        self._kv = state.kv
        self._book = state.book
        self._transfers = state.transfers
        self._memory = memory

    def await_kv(self, plan: StepPlan, request: Request, now: int) -> None:
        """Reserve pages for a prompt whose KV comes from another replica."""
        request.move_to(RequestStatus.AWAITING_KV)
        self._kv.ensure_free(need := self._memory.pages_missing(request, request.prompt_tokens))
        self._kv.grow(request, need)
        request.scheduled_tokens = request.prompt_tokens
        self._book.awaiting[request.request_id] = request
        receive = self._transfers.open(request, TransferDirection.RECEIVE, now)
        plan.transfers = [*plan.transfers, receive]
        self._book.note(now, request, RequestEvent.AWAIT_KV)

    def start_sends(self, plan: StepPlan, now: int) -> None:
        """Open a transfer for every computed prompt whose KV has to leave."""
        for request in self._state.to_send:
            if request.status == RequestStatus.HOLDING_KV:
                send = self._transfers.open(request, TransferDirection.SEND, now)
                plan.transfers = [*plan.transfers, send]
        self._state.to_send.clear()

    def hold_kv(self, request: Request, now: int) -> None:
        """A prompt is computed and its KV must leave: the next plan starts the transfer."""
        request.move_to(RequestStatus.HOLDING_KV)
        self._state.to_send.append(request)
        self._book.holding[request.request_id] = request
        self._book.note(now, request, RequestEvent.HOLD_KV)

    def end_transfer(self, transfer_id: int, status: TransferStatus, now: int) -> Request | None:
        transfer = self._transfers.close(transfer_id)
        request = self._book.requests.get(transfer.request_id) if transfer else None
        if transfer is None or request is None or request.epoch != transfer.epoch:
            return None
        self._book.note(now, request, RequestEvent.TRANSFER_DONE, transfer_id, status)
        done = status == TransferStatus.OK
        if transfer.direction == TransferDirection.SEND:
            self._book.finish(
                request, FinishReason.TRANSFERRED if done else FinishReason.ERROR, now
            )
            return request
        request.handoff = KVHandoff.NONE
        if not done:
            self._book.retract(request, RetractReason.STEP_FAILED, now)
            return None
        request.committed_tokens = request.prompt_tokens
        request.pending_outputs += 1
        self._book.commit_first(request, now)
        if request.max_tokens == 1:
            request.move_to(RequestStatus.DECODING)
            self._book.finish(request, FinishReason.LENGTH, now)
            return request
        del self._book.awaiting[request.request_id]
        self._kv.publish(request, request.committed_tokens)
        self._book.joining[request.request_id] = request
        return None
