"""Takes in what a step brought: tokens, ends, failures."""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.enums import FinishReason, RequestStatus, RetractReason
from engine.core.handoff import Handoff
from engine.core.plan import PrefillItem, StepPlan, StepResult, VerifyItem
from engine.core.request import KVHandoff, Request
from engine.core.scheduler_state import SchedulerState
from engine.core.token_ids import TokenBuffer

MAX_FAILURES = 3  # a request whose steps fail this often ends with an error


class Results:
    """Applies step results to requests. Results of requests that have left since are void."""

    def __init__(self, state: SchedulerState, handoff: Handoff) -> None:
        self._state = state
        self._kv = state.kv
        self._book = state.book
        self._handoff = handoff

    def check(self, plan: StepPlan, result: StepResult) -> None:
        """Look whether a result fits a plan, before anything is changed by it.

        Raises:
            ValueError: it does not.
        """
        if result.failed:
            return
        if result.token_ids is not None:
            rows, ids = len(plan.sampling_requests()), len(result.token_ids)
            if rows != ids:
                raise ValueError(f"plan {plan.plan_id} samples {rows} tokens, got {ids}")
        if len(result.verified) != len(plan.verifies):
            raise ValueError(
                f"plan {plan.plan_id} verifies {len(plan.verifies)} items, "
                f"got {len(result.verified)}"
            )
        for item, kept in zip(plan.verifies, result.verified, strict=True):
            if not 0 <= kept <= item.num_tokens:
                raise ValueError(f"{kept} tokens kept of a verify item of {item.num_tokens}")
        if result.verified_ids is not None:
            lengths = [len(ids) for ids in result.verified_ids]
            if lengths != list(result.verified):
                raise ValueError(
                    f"plan {plan.plan_id} kept {list(result.verified)} tokens per verify item, "
                    f"got {lengths} ids"
                )

    def append_tokens(self, plan: StepPlan, result: StepResult) -> None:
        """Add the sampled ids of a step to the texts they belong to."""
        ids, broken = result.token_ids or (), result.broken
        for (request, epoch), token_id in zip(plan.sampling_requests(), ids, strict=True):
            if broken and request.request_id in broken:
                continue
            if request.epoch == epoch and isinstance(request.tokens, TokenBuffer):
                request.tokens.append(int(token_id))

    def take(self, plan: StepPlan, result: StepResult, now: int) -> list[Request]:
        """Apply a result to a plan that has left `in_flight`; returns the requests that ended."""
        if result.failed:
            return self._fail(plan, now)
        book = self._book
        # First, while nothing of this step counts yet and its prompts are not shared.
        ended = self._finish(plan, result.broken, FinishReason.ERROR, now) if result.broken else []
        if plan.verifies:
            ended += self._commit_verifies(plan, result, now)
        if plan.prefills:
            self._commit_prefills(plan, now)
        if plan.decode_iteration >= 0:
            book.committed_iteration = plan.decode_iteration
        if result.stopped:
            ended += self._finish(plan, result.stopped, FinishReason.STOP, now)
        limits = book.batch.limits
        if book.draining or (limits and limits[0][0] <= book.batch.iteration):
            ended += self._finish_limits(plan, now)
        return ended

    def _commit_prefills(self, plan: StepPlan, now: int) -> None:
        for item in plan.prefills:
            request = item.request
            if item.epoch != request.epoch:
                continue
            request.committed_tokens = item.context_tokens + item.num_tokens
            if not item.samples:
                continue
            self._book.commit_first(request, now)
            self._kv.publish(request, request.committed_tokens)
            self._kv.prove(request)
            if request.handoff == KVHandoff.SEND and request.max_tokens > 1:
                self._book.draining[plan.plan_id].pop(request.request_id)
                self._handoff.hold_kv(request, now)

    def _commit_verifies(self, plan: StepPlan, result: StepResult, now: int) -> list[Request]:
        ended = []
        for at, (item, kept) in enumerate(zip(plan.verifies, result.verified, strict=True)):
            request = item.request
            if item.epoch != request.epoch:
                continue
            rejected = item.num_tokens - kept
            request.committed_tokens += kept
            request.committed_outputs += kept
            request.pending_outputs -= item.num_tokens
            request.scheduled_tokens -= rejected
            if result.verified_ids is not None and isinstance(request.tokens, TokenBuffer):
                for token_id in result.verified_ids[at]:
                    request.tokens.append(int(token_id))
            if rejected:
                self._kv.shrink(
                    request, -(-request.scheduled_tokens // self._state.config.page_size)
                )
            stopped = request.request_id in result.stopped  # which ends it with its own reason
            if request.committed_outputs >= request.max_tokens and not stopped:
                self._book.finish(request, FinishReason.LENGTH, now)
                ended.append(request)
        return ended

    def _finish(
        self, plan: StepPlan, request_ids: Sequence[int], reason: FinishReason, now: int
    ) -> list[Request]:
        ended = []
        for request_id in request_ids:
            request = self._book.requests.get(request_id)
            if request is not None and self._in_plan(plan, request):
                self._book.finish(request, reason, now)
                ended.append(request)
        return ended

    def _in_plan(self, plan: StepPlan, request: Request) -> bool:
        """Whether a plan brought a token that still counts for this request."""
        iteration = plan.decode_iteration
        if 0 <= request.span_first <= iteration and (
            request.span_last < 0 or iteration <= request.span_last
        ):
            return True
        items: list[PrefillItem | VerifyItem] = [i for i in plan.prefills if i.samples]
        items += plan.verifies
        return any(i.request is request and i.epoch == request.epoch for i in items)

    def _finish_limits(self, plan: StepPlan, now: int) -> list[Request]:
        """End the requests for which max_tokens was reached with this plan."""
        book = self._book
        if plan.decode_iteration >= 0 and plan.decode_iteration == book.batch.iteration:
            for request in book.batch.pop_finished():
                book.drain(request, plan.plan_id)
        if plan.plan_id not in book.draining:
            return []
        ended = list(book.draining[plan.plan_id].values())
        for request in ended:
            if request.status == RequestStatus.PREFILLING:
                request.move_to(RequestStatus.DECODING)
            book.finish(request, FinishReason.LENGTH, now)
        book.draining.pop(plan.plan_id, None)
        return ended

    def _fail(self, plan: StepPlan, now: int) -> list[Request]:
        """A step did not happen: its requests compute again, or end after too many failures."""
        book, iteration = self._book, plan.decode_iteration
        items: tuple[PrefillItem | VerifyItem, ...] = (*plan.prefills, *plan.verifies)
        hit = [item.request for item in items if item.epoch == item.request.epoch]
        if iteration >= 0:
            drained = [r for place in book.draining.values() for r in place.values()]
            members = list(book.batch.members.values()) + drained
            hit += [r for r in members if 0 <= r.span_first <= iteration]
            book.committed_iteration = max(book.committed_iteration, iteration - 1)
        ended = []
        for request in hit:
            if request.status not in (RequestStatus.PREFILLING, RequestStatus.DECODING):
                continue
            request.failures += 1
            if request.failures >= MAX_FAILURES:
                book.finish(request, FinishReason.ERROR, now)
                ended.append(request)
            else:
                book.retract(request, RetractReason.STEP_FAILED, now)
        if iteration >= 0:
            book.committed_iteration = iteration
        book.draining.pop(plan.plan_id, None)
        return ended
