"""All live requests of a scheduler: where each one is, and the ways in which it moves on."""

from __future__ import annotations

from collections.abc import Iterator

from engine.core.config import SchedulerConfig
from engine.core.decode_batch import DecodeBatch
from engine.core.enums import FinishReason, RejectReason, RequestEvent, RequestStatus, RetractReason
from engine.core.events import EventLog
from engine.core.kv_memory import KvMemory
from engine.core.request import Request
from engine.core.token_ids import TokenBuffer
from engine.core.waiting_queue import Policy, WaitingQueue


class RequestBook:
    """Keeps every live request in exactly one place and records how it gets there.

    Attributes:
        requests: all live requests by id.
        waiting: not admitted.
        prefilling: admitted, with known tokens that no plan computes yet; in order of admission.
        joining: fully planned prompts that enter the decode batch (or `verifying`) at the next
            plan.
        batch: decoding one token per iteration.
        verifying: decoding with speculation.
        draining: plan id -> requests whose last allowed token that plan brings.
        holding, awaiting: KV waits to be sent, or is on its way here.
        committed_iteration: newest decode iteration that came back.
        last_decode_plan_id: newest plan with the decode batch.
        oldest_in_flight: oldest plan not committed, or None.
        promised_pages: pages that admitted requests may hold at most, by their max_tokens.
        retracted: retractions since the last plan.
        running: admitted requests that still need steps (prefilling, joining, decoding, awaiting);
            each takes one of max_running_requests slots.
    """

    def __init__(
        self, config: SchedulerConfig, kv: KvMemory, events: EventLog | None, replica: int
    ) -> None:
        self._kv = kv
        self._replica = replica
        self._page_size = config.page_size
        self._write_request = events.write("requests") if events else None
        self._write_span = events.write("decode_spans") if events else None
        self._write_life = events.write("lifecycle") if events else None
        self.requests: dict[int, Request] = {}
        self.waiting = WaitingQueue(config.policy, kv.peek)
        self.prefilling: dict[int, Request] = {}
        self.joining: dict[int, Request] = {}
        self.batch = DecodeBatch(config.page_size)
        self.verifying: dict[int, Request] = {}
        self.draining: dict[int, dict[int, Request]] = {}
        self.holding: dict[int, Request] = {}
        self.awaiting: dict[int, Request] = {}
        self.committed_iteration = 0
        self.last_decode_plan_id = -1
        self.oldest_in_flight: int | None = None
        self.promised_pages = 0
        self.retracted = 0
        self.running = 0
        self._sequence = 0
        self._epochs = 0

    def reorder(self, policy: Policy) -> None:
        """Let the queue follow another policy."""
        waiting = sorted(self.waiting, key=lambda request: request.sequence)
        self.waiting = WaitingQueue(policy, self._kv.peek)
        for request in waiting:
            self.waiting.push(request)

    def running_requests(self) -> Iterator[Request]:
        """Requests that could be retracted, in no meaningful order but a fixed one."""
        yield from self.batch.members.values()
        yield from self.verifying.values()
        yield from self.joining.values()
        yield from self.prefilling.values()

    def pages_promised(self, request: Request) -> int:
        """Pages a request holds at its longest."""
        return -(-request.max_kv_tokens // self._page_size)

    def output_tokens(self, request: Request) -> int:
        """Tokens generated and committed."""
        return request.committed_outputs + self._span_committed(request)

    def kv_committed(self, request: Request) -> int:
        """KV entries whose step came back."""
        done = self._span_committed(request)
        if done:
            return request.offset + request.span_first - 1 + done
        return request.committed_tokens

    def arrive(self, request: Request, now: int) -> None:
        """A new request joins the queue."""
        request.arrival_ns = now
        self._start_epoch(request)
        request.sequence = self._sequence
        self._sequence += 1
        self.requests[request.request_id] = request
        self.waiting.push(request)
        self.note(now, request, RequestEvent.ARRIVE, request.prompt_tokens, request.max_tokens)

    def reject(self, request: Request, reason: RejectReason, now: int) -> None:
        """A new request can never be served: it ends at once."""
        request.arrival_ns = request.finish_ns = now
        request.move_to(RequestStatus.FINISHED)
        request.finish_reason, request.reject_reason = FinishReason.REJECTED, reason
        self.note(now, request, RequestEvent.REJECT, reason)
        self._write_row(request)

    def admit(self, request: Request, now: int) -> None:
        """Record an admission; `request.cached_depth` tokens are in its page table already."""
        self.waiting.admitted(request)
        self.promised_pages += self.pages_promised(request)
        self.running += 1
        left = request.prefill_left
        if request.admitted_ns < 0:
            request.admitted_ns = now
            request.cached_tokens = request.cached_depth
            self.note(now, request, RequestEvent.ADMIT, request.cached_depth, left)
        else:
            request.recomputed_tokens += max(0, request.lost_tokens - request.cached_depth)
            self.note(now, request, RequestEvent.RESUME, request.cached_depth, left)

    def drain(self, request: Request, plan_id: int) -> None:
        """No plan after `plan_id` will contain this request, so its slot is free."""
        self.running -= 1
        request.last_plan_id = plan_id
        self.draining.setdefault(plan_id, {})[request.request_id] = request

    def finish(self, request: Request, reason: FinishReason, now: int) -> None:
        """End a request: its one terminal event. Pages that a plan still touches follow later.

        What a request computed that ends with an error is not worth sharing: it may be the error.
        Neither is what it took from the cache, unless a token came of that before.
        """
        self._detach(request)
        self._start_epoch(request)
        if request.status != RequestStatus.WAITING:
            if reason == FinishReason.ERROR:
                self._kv.withdraw(request)
                request.committed_tokens = request.cached_depth
            self._give_back(request)
        request.move_to(RequestStatus.FINISHED)
        request.finish_reason = reason
        request.finish_ns = now
        del self.requests[request.request_id]
        self.note(now, request, RequestEvent.FINISH, reason, request.committed_outputs)
        self._write_row(request)

    def retract(self, request: Request, reason: RetractReason, now: int) -> None:
        """Send an admitted request back to the queue; it will compute its KV again."""
        self._detach(request)
        self._start_epoch(request)
        request.retractions += 1
        request.lost_tokens = request.committed_tokens
        self.retracted += 1
        self.note(now, request, RequestEvent.RETRACT, request.committed_tokens, reason)
        self._give_back(request)
        request.known_tokens = request.prompt_tokens + request.committed_outputs
        request.pending_outputs = 0
        request.move_to(RequestStatus.WAITING)
        if isinstance(request.tokens, TokenBuffer):
            request.tokens.truncate(request.known_tokens)
        self.waiting.push(request)

    def commit_first(self, request: Request, now: int) -> None:
        """The token that ends a prefill came back."""
        request.committed_outputs += 1
        request.pending_outputs -= 1
        request.span_token_ns = now
        if request.first_token_ns < 0:
            request.first_token_ns = now
            self.note(now, request, RequestEvent.FIRST_TOKEN)

    def note(self, now: int, request: Request, event: RequestEvent, a: int = 0, b: int = 0) -> None:
        """Write a lifecycle event, if this run records them."""
        if self._write_life is not None:
            self._write_life((now, self._replica, request.request_id, event, a, b))

    def write_unfinished(self) -> None:
        """Record the requests that are still alive when a run is cut off."""
        for request in self.requests.values():
            self._close_span(request)
            self._write_row(request)

    def _start_epoch(self, request: Request) -> None:
        """Results in flight are void; so are those for an earlier request of the same id."""
        self._epochs += 1
        request.epoch = self._epochs

    def _span_committed(self, request: Request) -> int:
        if request.span_first < 0:
            return 0
        last = self.committed_iteration
        if 0 <= request.span_last < last:
            last = request.span_last
        return max(0, last - request.span_first + 1)

    def _detach(self, request: Request) -> None:
        """Take a request out of wherever it is and settle its counters."""
        request_id = request.request_id
        if request.status is RequestStatus.WAITING:
            self.waiting.remove(request)
        elif request_id in self.batch.members:
            self.batch.leave(request)
            # Its prompt's plan is newer when no plan has decoded since it joined.
            request.last_plan_id = max(request.last_plan_id, self.last_decode_plan_id)
            self.running -= 1
        elif not self._undrain(request):
            for place in (self.prefilling, self.joining, self.verifying, self.awaiting):
                if place.pop(request_id, None) is not None:
                    self.running -= 1
                    break
            else:
                self.holding.pop(request_id, None)
        self._close_span(request)

    def _undrain(self, request: Request) -> bool:
        place = self.draining.get(request.last_plan_id)
        if place is None or place.pop(request.request_id, None) is None:
            return False
        if not place:
            del self.draining[request.last_plan_id]
        return True

    def _close_span(self, request: Request) -> None:
        """End a stay in the decode batch: settle the counters and write its row."""
        if request.span_first < 0 and request.span_token_ns < 0:
            return
        done = self._span_committed(request)
        scheduled = 0
        first, context = self.batch.iteration + 1, request.known_tokens
        if request.span_first >= 0:
            first = request.span_first
            last = request.span_last if request.span_last >= 0 else self.batch.iteration
            scheduled = last - first + 1
            context = request.offset + first - 1
        if self._write_span is not None:
            self._write_span(
                (
                    request.request_id,
                    self._replica,
                    request.span_token_ns,
                    first,
                    scheduled,
                    done,
                    context,
                )
            )
        if done:
            request.committed_tokens = context + done
            request.committed_outputs += done
        request.span_first = request.span_last = request.span_token_ns = -1

    def _give_back(self, request: Request) -> None:
        oldest = self.oldest_in_flight
        busy = oldest is not None and request.last_plan_id >= oldest
        until = request.last_plan_id if busy else None
        self.promised_pages -= self.pages_promised(request)
        self._kv.release(request, request.committed_tokens, until)

    def _write_row(self, request: Request) -> None:
        if self._write_request is not None:
            self._write_request((
                request.request_id, self._replica, request.tenant, request.priority, request.parent,
                request.prompt_tokens, request.max_tokens, request.committed_outputs,
                request.cached_tokens, request.retractions, request.recomputed_tokens,
                request.client_wait_ns, request.arrival_ns, request.admitted_ns,
                request.first_token_ns, request.finish_ns, request.finish_reason,
                request.reject_reason,
            ))  # fmt: skip
