"""Composes the next step: decodes first, then chunks of admitted prompts, then new requests."""

from __future__ import annotations

from engine.core.enums import (
    AdmissionBlock,
    ItemKind,
    RequestStatus,
    RetractReason,
    TransferStatus,
)
from engine.core.events import EventLog
from engine.core.handoff import Handoff
from engine.core.memory_policy import MemoryPolicy
from engine.core.plan import PrefillItem, StepPlan, VerifyItem
from engine.core.request import KVHandoff, Request
from engine.core.scheduler_state import SchedulerState


class Planner:
    """Makes the plans of one scheduler and puts them in flight."""

    def __init__(
        self,
        state: SchedulerState,
        memory: MemoryPolicy,
        handoff: Handoff,
        events: EventLog | None,
    ) -> None:
        self._state = state
        self._kv = state.kv
        self._book = state.book
        self._transfers = state.transfers
        self._in_flight = state.in_flight
        self._memory = memory
        self._handoff = handoff
        self._write_item = events.write("items") if events else None

    def plan(self, now: int) -> StepPlan | None:
        book = self._book
        retracted = book.retracted
        if self._transfers.pending:
            for transfer_id in self._transfers.expired(now):
                late = self._handoff.end_transfer(transfer_id, TransferStatus.TIMED_OUT, now)
                if late is not None:
                    self._state.ended.append(late)
        batch = book.batch
        if book.joining or (batch.limits and batch.limits[0][0] <= batch.iteration):
            self._settle_batch()
        if self._state.config.policy == "priority" and not self._preempt_for_priority(now):
            return None
        plan = StepPlan(self._state.next_plan_id)
        if self._state.to_send:
            self._handoff.start_sends(plan, now)
        if self._state.config.mode == "prefill_first":
            self._plan_prefills(plan, self._state.config.max_num_batched_tokens, now)
            ready = bool(plan.prefills) or self._plan_decodes(plan, now)
        else:
            ready = self._plan_decodes(plan, now)
            if ready and (book.prefilling or book.waiting.live):
                left = self._state.config.max_num_batched_tokens - plan.decode_tokens
                self._plan_prefills(plan, left, now)
        if not ready and not plan.transfers:
            return None
        if plan.decode_iteration < 0 and not (plan.prefills or plan.verifies or plan.transfers):
            if self._in_flight or not book.prefilling:
                return None
            if book.retracted == retracted and not self._memory.retract_one(now):
                return None
            return self.plan(now)  # half-computed prompts get the pages that became free
        self._close_plan(plan)
        return plan

    def _settle_batch(self) -> None:
        """Bring the decode batch up to date: finished limits leave, finished prompts join."""
        book = self._book
        for request in book.batch.pop_finished():
            book.drain(request, book.last_decode_plan_id)
        if book.joining:
            for request in book.joining.values():
                request.move_to(RequestStatus.DECODING)
                if self._state.config.num_speculative_tokens:
                    book.verifying[request.request_id] = request
                else:
                    book.batch.join(request)
            book.joining.clear()

    def _plan_decodes(self, plan: StepPlan, now: int) -> bool:
        """Put all decoding requests into the plan; False: wait for results before planning."""
        if self._book.verifying:
            return self._plan_verifies(plan, now)
        batch = self._book.batch
        if not batch.members:
            return True
        iteration = batch.iteration + 1
        kv = self._kv
        while (crossing := batch.crossing(iteration)) and not kv.ensure_free(len(crossing)):
            if self._in_flight:
                return False
            if not self._memory.retract_one(now):
                return True
        if not batch.members:
            return True
        if crossing:
            kv.grow_each(crossing.values())
            batch.page_given(iteration)
        batch.iteration = plan.decode_iteration = iteration
        size, plan.decode_context, plan.decode_max_context = batch.sums(iteration)
        plan.decode_requests = plan.decode_tokens = plan.sampled_tokens = size
        plan.batch, plan.batch_version = batch, batch.version
        self._book.last_decode_plan_id = plan.plan_id
        return True

    def _plan_verifies(self, plan: StepPlan, now: int) -> bool:
        """One verify item per speculating request; False: wait for results before planning."""
        wanted = 1 + self._state.config.num_speculative_tokens
        plan.verifies = items = list[VerifyItem]()
        for request in list(self._book.verifying.values()):
            left = request.max_tokens - request.committed_outputs - request.pending_outputs
            if left <= 0 or request.request_id not in self._book.verifying:
                continue
            count = min(wanted, left)
            need = self._memory.pages_missing(request, request.scheduled_tokens + count)
            while request.request_id in self._book.verifying and not self._kv.ensure_free(need):
                if items:
                    return True
                if self._in_flight:
                    return False
                if not self._memory.retract_one(now):
                    return True
            if request.request_id not in self._book.verifying:
                continue
            self._kv.grow(request, need)
            item = VerifyItem(request, request.epoch, count, request.scheduled_tokens)
            request.scheduled_tokens += count
            request.pending_outputs += count
            request.last_plan_id = plan.plan_id
            items.append(item)
            plan.decode_requests += 1
            plan.decode_tokens += count
            plan.sampled_tokens += count
            plan.decode_context += request.scheduled_tokens
            plan.decode_max_context = max(plan.decode_max_context, request.scheduled_tokens)
        return True

    def _plan_prefills(self, plan: StepPlan, budget: int, now: int) -> None:
        """Continue admitted prompts in order of admission, then admit from the queue."""
        book, capped, slots = self._book, False, self._state.config.max_running_requests
        cap = self._state.config.max_prefill_tokens
        if cap is not None and cap < budget:
            budget, capped = cap, True
        full = AdmissionBlock.PREFILL_LIMIT if capped else AdmissionBlock.TOKEN_BUDGET
        for request in list(book.prefilling.values()):
            if budget > 0:
                budget -= self._plan_chunk(plan, request, budget)
        while book.waiting.live:
            if book.prefilling:
                stuck = budget > 0
                plan.block_reason = AdmissionBlock.KV_PAGES if stuck else full
            elif self._state.memory_ran_out:
                plan.block_reason = AdmissionBlock.RETRACTION
            elif book.running + len(book.draining.get(plan.plan_id, ())) >= slots:
                plan.block_reason = AdmissionBlock.RUNNING_LIMIT
            elif budget <= 0:
                plan.block_reason = full
            else:
                taken = self._try_admit(plan, budget, full, now)
                budget -= taken
                if taken:
                    continue
            if plan.block_reason:
                break

    def _try_admit(self, plan: StepPlan, budget: int, full: AdmissionBlock, now: int) -> int:
        """Admit the head of the queue with its first chunk; returns the tokens spent."""
        request = self._book.waiting.head()
        if request is None:
            return 0
        match = self._memory.lock_prefix(request)
        shared = len(match.pages) if match else 0
        extend = request.known_tokens - shared * self._state.config.page_size
        receives = request.handoff == KVHandoff.RECEIVE  # and computes nothing
        if not receives and self._must_be_whole(extend) and extend > budget:
            reason = full
        else:
            reason = self._memory.block_reason(request, shared)
        if reason:
            self._memory.unlock_prefix(match)
            plan.block_reason = reason
            return 0
        if match is not None:
            self._kv.attach(request, match)
        elif not receives:
            self._kv.attach_nothing(request)
        self._book.admit(request, now)
        if receives:
            self._handoff.await_kv(plan, request, now)
            return 0
        request.move_to(RequestStatus.PREFILLING)
        self._book.prefilling[request.request_id] = request
        plan.hit_tokens += request.cached_depth
        return self._plan_chunk(plan, request, budget)

    def _plan_chunk(self, plan: StepPlan, request: Request, budget: int) -> int:
        """Plan up to `budget` tokens of a prompt, as many as there are pages for; returns them."""
        count = min(request.prefill_left, budget)
        whole = self._must_be_whole(request.prefill_left)
        if whole and count < request.prefill_left:
            return 0
        need = self._memory.pages_missing(request, request.scheduled_tokens + count)
        if not self._kv.ensure_free(need):
            slots = (len(request.pages) + self._kv.available_pages) * self._state.config.page_size
            count = slots - request.scheduled_tokens
            if count <= 0 or whole:
                return 0
            need = self._kv.available_pages
            self._kv.ensure_free(need)
        self._kv.grow(request, need)
        context = request.scheduled_tokens
        request.scheduled_tokens += count
        samples = request.prefill_left == 0
        item = PrefillItem(request, request.epoch, count, context, samples)
        if isinstance(plan.prefills, list):
            plan.prefills.append(item)
        else:
            plan.prefills = [item]
        plan.prefill_tokens += count
        plan.prefill_context += context
        plan.prefill_pairs += count * context + count * (count + 1) // 2
        if context + count > plan.prefill_max_context:
            plan.prefill_max_context = context + count
        request.last_plan_id = plan.plan_id
        if samples:
            self._prompt_planned(plan, request)
        return count

    def _must_be_whole(self, tokens: int) -> bool:
        """Whether a prompt must run in one step: without chunked prefill, if any step can hold it.

        A request that was retracted after generating much may exceed every step.
        """
        return (
            not self._state.config.chunked_prefill and tokens <= self._state.config.prefill_budget
        )

    def _prompt_planned(self, plan: StepPlan, request: Request) -> None:
        """The plan completes a prompt: where does the request go next?"""
        plan.sampled_tokens += 1
        request.pending_outputs += 1
        del self._book.prefilling[request.request_id]
        last = request.known_tokens + 1 == request.prompt_tokens + request.max_tokens
        if last or request.handoff == KVHandoff.SEND:
            self._book.drain(request, plan.plan_id)
        else:
            self._book.joining[request.request_id] = request

    def _close_plan(self, plan: StepPlan) -> None:
        """Fill in what describes the whole step and put the plan in flight."""
        book, kv, in_flight = self._book, self._kv, self._in_flight
        if in_flight and plan.decode_requests:
            newest = self._state.newest_sampling_plan
            plan.feeds_from = newest if newest >= in_flight[0].plan_id else -1
        if plan.sampled_tokens:
            self._state.newest_sampling_plan = plan.plan_id
        if plan.decode_requests and not plan.prefills:
            plan.graph_batch = self._state.graph_batch(plan.decode_requests)
        plan.running = book.running
        plan.waiting = len(book.waiting.live)
        plan.free_pages = kv.pool.free_pages
        plan.cached_pages, plan.shared_context = kv.cached_pages, kv.shared_tokens
        if book.retracted or kv.evicted_pages:
            plan.retracted, book.retracted = book.retracted, 0
            plan.evicted_pages, kv.evicted_pages = kv.evicted_pages, 0
        self._state.next_plan_id += 1
        in_flight.append(plan)
        book.oldest_in_flight = in_flight[0].plan_id
        if self._write_item is not None:
            self._record_items(plan)

    def _record_items(self, plan: StepPlan) -> None:
        write = self._write_item
        if write is None:
            return
        for item in plan.prefills:
            row = (item.request.request_id, ItemKind.PREFILL, item.num_tokens, item.context_tokens)
            write((plan.plan_id, self._state.replica, *row))
        for verify in plan.verifies:
            row = (
                verify.request.request_id,
                ItemKind.VERIFY,
                verify.num_tokens,
                verify.context_tokens,
            )
            write((plan.plan_id, self._state.replica, *row))

    def _preempt_for_priority(self, now: int) -> bool:
        """Retract less urgent requests that block a more urgent head; False: wait for results."""
        while (head := self._book.waiting.head()) is not None:
            running = list(self._book.running_requests())
            victim = min(running, key=lambda r: (r.priority, -r.sequence), default=None)
            if victim is None or victim.priority >= head.priority:
                return True
            slots = self._state.config.max_running_requests
            if self._book.running < slots and not self._memory.blocks(head):
                return True
            if self._in_flight:
                return False
            self._book.retract(victim, RetractReason.PRIORITY, now)
        return True
