"""The scheduler: which request computes how many tokens in the next step.

Sans-IO. A driver calls `add`, `abort`, `plan`, `commit`, `transfer_done` with the time in ns and
does what the plans say. The rules, in one place:

* One token budget per step covers decodes (or verify items) first and prefill chunks with what is
  left; in `prefill_first` mode decodes wait while there is anything to prefill.
* A request that can never fit is rejected by `add`. Admission estimates future memory; when pages
  run out all the same, running requests are retracted, cheapest to recompute first, never the
  oldest. So the oldest always finishes, and every request that fits the pool does in the end.
* Several plans may be in flight. They come back in order; a result for a request that has left
  since is void, and pages a plan may touch become free only when it is back. Retraction waits
  until nothing is in flight.
* The scheduler knows max_tokens, never where a text really ends.
"""

from __future__ import annotations

import bisect
from collections import deque

from engine.core.admission import NewTokenRatio
from engine.core.config import UNCHANGEABLE, SchedulerConfig
from engine.core.enums import (
    AdmissionBlock,
    FinishReason,
    ItemKind,
    RejectReason,
    RequestEvent,
    RequestStatus,
    RetractReason,
    TransferStatus,
)
from engine.core.errors import PlanOrderError
from engine.core.events import EventLog
from engine.core.journal import Journal
from engine.core.kv_memory import KvMemory
from engine.core.plan import (
    PrefillItem,
    StepPlan,
    StepResult,
    TransferDirection,
    VerifyItem,
)
from engine.core.radix_cache import PrefixMatch
from engine.core.request import KVHandoff, Request
from engine.core.request_book import RequestBook
from engine.core.token_ids import TokenBuffer
from engine.core.transfers import TransferDesk

MAX_FAILURES = 3  # a request whose steps fail this often ends with an error


def _graph_buckets(sizes: tuple[int, ...]) -> list[int]:
    """The bucket of each batch size from 0 to the largest."""
    return [sizes[bisect.bisect_left(sizes, n)] for n in range(sizes[-1] + 1)] if sizes else []


class Scheduler:
    """Schedules one replica; the module docstring has the rules, `plan.py` the results."""

    def __init__(
        self,
        config: SchedulerConfig,
        events: EventLog | None = None,
        replica: int = 0,
        journal: Journal | None = None,
    ) -> None:
        self.config = config
        self.kv = KvMemory(
            config.num_pages,
            config.page_size,
            prefix_cache=config.prefix_cache,
            eviction=config.eviction,
            events=events,
            replica=replica,
            next_plan_id=lambda: self.next_plan_id,
        )
        self.book = RequestBook(config, self.kv, events, replica)
        self._graph_buckets = _graph_buckets(config.cuda_graph_batch_sizes)
        self.transfers = TransferDesk(self.kv, config.transfer_timeout_ns)
        self.in_flight: deque[StepPlan] = deque()
        self.next_plan_id = 0
        self._ratio = NewTokenRatio(config.schedule_conservativeness)
        self._newest_sampling_plan = -1
        self._commits = 0
        self._to_send: list[Request] = []
        self._memory_ran_out = False  # in this call of `plan`
        self._replica = replica
        self._journal = journal
        self._write_item = events.write("items") if events else None

    # ---- requests in and out -------------------------------------------------------------------

    def add(self, request: Request, now: int) -> RejectReason:
        """Take a request in, or reject it for good if it can never be served.

        Raises:
            ValueError: its id is in use.
        """
        if request.request_id in self.book.requests:
            raise ValueError(f"request id {request.request_id} is in use")
        if self._journal is not None:
            self._journal.add(request, now)
        reason = self._why_never(request)
        if reason:
            self.book.reject(request, reason, now)
        else:
            self.book.arrive(request, now)
        return reason

    def abort(self, request_id: int, now: int) -> Request | None:
        """The client gave up. Returns the request, or None if it is not alive (any more)."""
        if self._journal is not None:
            self._journal.abort(request_id, now)
        request = self.book.requests.get(request_id)
        if request is not None:
            self.book.finish(request, FinishReason.ABORT, now)
        return request

    def transfer_done(self, transfer_id: int, status: TransferStatus, now: int) -> Request | None:
        """A KV transfer ended. Late and repeated notices are ignored; returns an ended request."""
        if self._journal is not None:
            self._journal.transfer_done(transfer_id, status, now)
        return self._end_transfer(transfer_id, status, now)

    def next_wakeup(self) -> int | None:
        """When to call `plan` although nothing arrives: the earliest transfer deadline, in ns."""
        return self.transfers.next_deadline()

    @property
    def has_work(self) -> bool:
        """Whether any request is alive here."""
        return bool(self.book.requests)

    def reconfigure(self, config: SchedulerConfig, now: int) -> None:
        """Go on with other settings. Pages, the queue and running requests stay.

        Plans in flight stay as they are. Under a lower `max_running_requests` requests above it are
        retracted at once, cheapest to recompute first, never the oldest.

        Raises:
            ValueError: a setting in `UNCHANGEABLE` would change, or more requests await their KV
                than may run.
        """
        fixed = [n for n in UNCHANGEABLE if getattr(config, n) != getattr(self.config, n)]
        if fixed:
            raise ValueError(f"{', '.join(fixed)} cannot change while the scheduler runs")
        book, before = self.book, self.config
        least = len(book.awaiting) + (book.running > len(book.awaiting))
        if book.awaiting and least > config.max_running_requests:
            raise ValueError(f"max_running_requests must be at least {least} while KV is awaited")
        if self._journal is not None:
            self._journal.reconfigure(config, now)
        self.config = config
        self._graph_buckets = _graph_buckets(config.cuda_graph_batch_sizes)
        if config.schedule_conservativeness != before.schedule_conservativeness:
            self._ratio = NewTokenRatio(config.schedule_conservativeness, book.batch.iteration)
        if config.policy != before.policy:
            book.reorder(config.policy)
        while book.running > config.max_running_requests and (victim := self._cheapest_running()):
            book.retract(victim, RetractReason.RUNNING_LIMIT, now)

    # ---- planning --------------------------------------------------------------------------------

    def plan(self, now: int) -> StepPlan | None:
        """Decide the next step, or None: nothing to run, or results must come back first.

        Raises:
            PlanOrderError: `max_plans_in_flight` plans are in flight.
        """
        if len(self.in_flight) >= self.config.max_plans_in_flight:
            raise PlanOrderError(f"{len(self.in_flight)} plans are in flight already")
        self._memory_ran_out = False
        plan = self._plan(now)
        if self._journal is not None:
            self._journal.plan(plan, now)
        return plan

    def _plan(self, now: int) -> StepPlan | None:
        book = self.book
        if self.transfers.pending:
            for transfer_id in self.transfers.expired(now):
                self._end_transfer(transfer_id, TransferStatus.TIMED_OUT, now)
        batch = book.batch
        if book.joining or (batch.limits and batch.limits[0][0] <= batch.iteration):
            self._settle_batch()
        if self.config.policy == "priority" and not self._preempt_for_priority(now):
            return None
        plan = StepPlan(self.next_plan_id)
        if self._to_send:
            self._start_sends(plan, now)
        if self.config.mode == "prefill_first":
            self._plan_prefills(plan, self.config.max_num_batched_tokens, now)
            ready = bool(plan.prefills) or self._plan_decodes(plan, now)
        else:
            ready = self._plan_decodes(plan, now)
            if ready and (book.prefilling or book.waiting.live):
                left = self.config.max_num_batched_tokens - plan.decode_tokens
                self._plan_prefills(plan, left, now)
        if not ready and not plan.transfers:
            return None
        if plan.decode_iteration < 0 and not (plan.prefills or plan.verifies or plan.transfers):
            if self.in_flight or not book.prefilling:
                return None
            return self._unblock_prefills(now)
        self._close_plan(plan)
        return plan

    def _settle_batch(self) -> None:
        """Bring the decode batch up to date: finished limits leave, finished prompts join."""
        book = self.book
        for request in book.batch.pop_finished():
            book.drain(request, book.last_decode_plan_id)
        if book.joining:
            for request in book.joining.values():
                request.move_to(RequestStatus.DECODING)
                if self.config.num_speculative_tokens:
                    book.verifying[request.request_id] = request
                else:
                    book.batch.join(request)
            book.joining.clear()

    def _plan_decodes(self, plan: StepPlan, now: int) -> bool:
        """Put all decoding requests into the plan; False: wait for results before planning."""
        if self.book.verifying:
            return self._plan_verifies(plan, now)
        batch = self.book.batch
        if not batch.members:
            return True
        iteration = batch.iteration + 1
        kv = self.kv
        while (crossing := batch.crossing(iteration)) and not kv.ensure_free(len(crossing)):
            if self.in_flight:
                return False
            if not self._retract_one(now):
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
        self.book.last_decode_plan_id = plan.plan_id
        return True

    def _plan_verifies(self, plan: StepPlan, now: int) -> bool:
        """One verify item per speculating request; False: wait for results before planning."""
        wanted = 1 + self.config.num_speculative_tokens
        plan.verifies = items = list[VerifyItem]()
        for request in list(self.book.verifying.values()):
            left = request.max_tokens - request.committed_outputs - request.pending_outputs
            if left <= 0 or request.request_id not in self.book.verifying:
                continue
            count = min(wanted, left)
            need = self._pages_missing(request, request.scheduled_tokens + count)
            while request.request_id in self.book.verifying and not self.kv.ensure_free(need):
                if items:
                    return True
                if self.in_flight:
                    return False
                if not self._retract_one(now):
                    return True
            if request.request_id not in self.book.verifying:
                continue
            self.kv.grow(request, need)
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
        book, capped, slots = self.book, False, self.config.max_running_requests
        cap = self.config.max_prefill_tokens
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
            elif self._memory_ran_out:
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
        request = self.book.waiting.head()
        if request is None:
            return 0
        match = self._lock_prefix(request)
        shared = len(match.pages) if match else 0
        extend = request.known_tokens - shared * self.config.page_size
        if self._must_be_whole(extend) and extend > budget:
            reason = full
        else:
            reason = self._memory_block(request, shared)
        if reason:
            self._unlock_prefix(match)
            plan.block_reason = reason
            return 0
        if match is not None:
            self.kv.attach(request, match)
        self.book.admit(request, now)
        if request.handoff == KVHandoff.RECEIVE:
            self._await_kv(plan, request, now)
            return 0
        request.move_to(RequestStatus.PREFILLING)
        self.book.prefilling[request.request_id] = request
        plan.hit_tokens += request.cached_depth
        return self._plan_chunk(plan, request, budget)

    def _plan_chunk(self, plan: StepPlan, request: Request, budget: int) -> int:
        """Plan up to `budget` tokens of a prompt, as many as there are pages for; returns them."""
        count = min(request.prefill_left, budget)
        whole = self._must_be_whole(request.prefill_left)
        if whole and count < request.prefill_left:
            return 0
        need = self._pages_missing(request, request.scheduled_tokens + count)
        if not self.kv.ensure_free(need):
            slots = (len(request.pages) + self.kv.available_pages) * self.config.page_size
            count = slots - request.scheduled_tokens
            if count <= 0 or whole:
                return 0
            need = self.kv.available_pages
            self.kv.ensure_free(need)
        self.kv.grow(request, need)
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
        request.last_plan_id = plan.plan_id
        if samples:
            self._prompt_planned(plan, request)
        return count

    def _must_be_whole(self, tokens: int) -> bool:
        """Whether a prompt must run in one step: without chunked prefill, if any step can hold it.

        A request that was retracted after generating much may exceed every step.
        """
        return not self.config.chunked_prefill and tokens <= self.config.prefill_budget

    def _prompt_planned(self, plan: StepPlan, request: Request) -> None:
        """The plan completes a prompt: where does the request go next?"""
        plan.sampled_tokens += 1
        request.pending_outputs += 1
        del self.book.prefilling[request.request_id]
        last = request.known_tokens + 1 == request.prompt_tokens + request.max_tokens
        if last or request.handoff == KVHandoff.SEND:
            self.book.drain(request, plan.plan_id)
        else:
            self.book.joining[request.request_id] = request

    def _close_plan(self, plan: StepPlan) -> None:
        """Fill in what describes the whole step and put the plan in flight."""
        book, kv, in_flight = self.book, self.kv, self.in_flight
        if in_flight and plan.decode_requests:
            newest = self._newest_sampling_plan
            plan.feeds_from = newest if newest >= in_flight[0].plan_id else -1
        if plan.sampled_tokens:
            self._newest_sampling_plan = plan.plan_id
        if plan.decode_requests and not plan.prefills:
            plan.graph_batch = self.graph_batch(plan.decode_requests)
        plan.running = book.running
        plan.waiting = len(book.waiting.live)
        plan.free_pages = kv.pool.free_pages
        plan.cached_pages = kv.cached_pages
        if book.retracted or kv.evicted_pages:
            plan.retracted, book.retracted = book.retracted, 0
            plan.evicted_pages, kv.evicted_pages = kv.evicted_pages, 0
        self.next_plan_id += 1
        in_flight.append(plan)
        book.oldest_in_flight = in_flight[0].plan_id
        if self._write_item is not None:
            self._record_items(plan)

    def graph_batch(self, num_requests: int) -> int:
        """The CUDA Graph bucket of a pure decode step, 0 if it is too large for all of them."""
        buckets = self._graph_buckets
        return buckets[num_requests] if num_requests < len(buckets) else 0

    def _record_items(self, plan: StepPlan) -> None:
        write = self._write_item
        if write is None:
            return
        for item in plan.prefills:
            row = (item.request.request_id, ItemKind.PREFILL, item.num_tokens, item.context_tokens)
            write((plan.plan_id, self._replica, *row))
        for verify in plan.verifies:
            row = (
                verify.request.request_id,
                ItemKind.VERIFY,
                verify.num_tokens,
                verify.context_tokens,
            )
            write((plan.plan_id, self._replica, *row))

    # ---- memory decisions ------------------------------------------------------------------------

    def _why_never(self, request: Request) -> RejectReason:
        config = self.config
        if request.prompt_tokens + request.max_tokens > config.max_model_len:
            return RejectReason.EXCEEDS_CONTEXT
        if self.book.pages_promised(request) > config.num_pages:
            return RejectReason.EXCEEDS_KV_POOL
        if not config.chunked_prefill and request.prompt_tokens > config.prefill_budget:
            return RejectReason.EXCEEDS_STEP_BUDGET
        return RejectReason.NONE

    def _memory_block(self, request: Request, shared_pages: int) -> AdmissionBlock:
        """Whether memory forbids a request whose first `shared_pages` pages are cached."""
        book, kv, size = self.book, self.kv, self.config.page_size
        available = kv.available_pages
        now_pages = -(-request.known_tokens // size) - shared_pages
        if now_pages > available:
            return AdmissionBlock.KV_PAGES
        if self.config.admission == "reserve":
            own = book.pages_promised(request) - shared_pages
            promised = book.promised_pages - kv.held_pages
            return AdmissionBlock.KV_RESERVED if own + promised > available else AdmissionBlock.NONE
        if not book.running:
            return AdmissionBlock.NONE
        own_tokens = request.prompt_tokens + request.max_tokens - request.known_tokens
        expected = self._ratio.at(book.batch.iteration) * self._remaining_outputs()
        future_pages = -(-(int(expected) + own_tokens) // size)
        blocked = now_pages + self._pending_pages() + future_pages > available
        return AdmissionBlock.KV_RESERVED if blocked else AdmissionBlock.NONE

    def _remaining_outputs(self) -> int:
        """Tokens that running requests may still generate by their max_tokens."""
        book = self.book
        total = book.batch.remaining_tokens()
        for place in (book.prefilling, book.joining, book.verifying, book.awaiting):
            if place:
                total += sum(
                    request.max_tokens - request.committed_outputs - request.pending_outputs
                    for request in place.values()
                )
        return total

    def _pending_pages(self) -> int:
        """Pages that admitted prompts still lack."""
        size, prefilling = self.config.page_size, self.book.prefilling
        if not prefilling:
            return 0
        return sum(
            max(0, -(-request.known_tokens // size) - len(request.pages))
            for request in prefilling.values()
        )

    def _pages_missing(self, request: Request, tokens: int) -> int:
        return max(0, -(-tokens // self.config.page_size) - len(request.pages))

    def _lock_prefix(self, request: Request) -> PrefixMatch | None:
        if request.handoff == KVHandoff.RECEIVE:
            return None
        match = self.kv.match(request)
        if match is not None and self.kv.cache is not None:
            self.kv.cache.lock(match.node)
        return match

    def _unlock_prefix(self, match: PrefixMatch | None) -> None:
        if match is not None and self.kv.cache is not None:
            self.kv.cache.unlock(match.node)

    def _retract_one(self, now: int) -> bool:
        """Send back the running request that is cheapest to recompute, never the oldest."""
        victim = self._cheapest_running()
        if victim is None:
            return False
        self._memory_ran_out = True
        self.book.retract(victim, RetractReason.KV_PAGES, now)
        left = list(self.book.batch.members.values())
        generated = sum(self.book.output_tokens(r) for r in left)
        limits = sum(r.max_tokens for r in left)
        self._ratio.retracted(self.book.batch.iteration, generated, len(left), limits)
        return True

    def _cheapest_running(self) -> Request | None:
        """The running request that is cheapest to recompute, never the oldest; None without one."""
        running = list(self.book.running_requests())
        if len(running) < 2:
            return None
        keep = min(running, key=lambda r: (-r.priority, r.sequence))
        return min(
            (request for request in running if request is not keep),
            key=lambda r: (
                r.priority, r.retractions, self.book.kv_committed(r) - r.cached_depth, -r.sequence
            ),
        )  # fmt: skip

    def _unblock_prefills(self, now: int) -> StepPlan | None:
        """Nothing can run because half-computed prompts hold the pages: send the cheapest back."""
        if not self._retract_one(now):
            return None
        return self._plan(now)

    def _preempt_for_priority(self, now: int) -> bool:
        """Retract less urgent requests that block a more urgent head; False: wait for results."""
        while (head := self.book.waiting.head()) is not None:
            running = list(self.book.running_requests())
            victim = min(running, key=lambda r: (r.priority, -r.sequence), default=None)
            if victim is None or victim.priority >= head.priority:
                return True
            if len(running) < self.config.max_running_requests and not self._blocked_by_memory(
                head
            ):
                return True
            if self.in_flight:
                return False
            self.book.retract(victim, RetractReason.PRIORITY, now)
        return True

    def _blocked_by_memory(self, request: Request) -> bool:
        match = self._lock_prefix(request)
        blocked = self._memory_block(request, len(match.pages) if match else 0)
        self._unlock_prefix(match)
        return bool(blocked)

    # ---- KV hand-off -----------------------------------------------------------------------------

    def _await_kv(self, plan: StepPlan, request: Request, now: int) -> None:
        """Reserve pages for a prompt whose KV comes from another replica."""
        request.move_to(RequestStatus.AWAITING_KV)
        self.kv.ensure_free(need := self._pages_missing(request, request.prompt_tokens))
        self.kv.grow(request, need)
        request.scheduled_tokens = request.prompt_tokens
        self.book.awaiting[request.request_id] = request
        receive = self.transfers.open(request, TransferDirection.RECEIVE, now)
        plan.transfers = [*plan.transfers, receive]
        self.book.note(now, request, RequestEvent.AWAIT_KV)

    def _start_sends(self, plan: StepPlan, now: int) -> None:
        """Open a transfer for every computed prompt whose KV has to leave."""
        for request in self._to_send:
            if request.status == RequestStatus.HOLDING_KV:
                send = self.transfers.open(request, TransferDirection.SEND, now)
                plan.transfers = [*plan.transfers, send]
        self._to_send.clear()

    def _hold_kv(self, request: Request, now: int) -> None:
        """A prompt is computed and its KV must leave: the next plan starts the transfer."""
        request.move_to(RequestStatus.HOLDING_KV)
        self._to_send.append(request)
        self.book.holding[request.request_id] = request
        self.book.note(now, request, RequestEvent.HOLD_KV)

    def _end_transfer(self, transfer_id: int, status: TransferStatus, now: int) -> Request | None:
        transfer = self.transfers.close(transfer_id)
        request = self.book.requests.get(transfer.request_id) if transfer else None
        if transfer is None or request is None or request.epoch != transfer.epoch:
            return None
        self.book.note(now, request, RequestEvent.TRANSFER_DONE, transfer_id, status)
        done = status == TransferStatus.OK
        if transfer.direction == TransferDirection.SEND:
            self.book.finish(request, FinishReason.TRANSFERRED if done else FinishReason.ERROR, now)
            return request
        request.handoff = KVHandoff.NONE
        if not done:
            self.book.retract(request, RetractReason.STEP_FAILED, now)
            return None
        request.committed_tokens = request.prompt_tokens
        request.pending_outputs += 1
        self.book.commit_first(request, now)
        if request.max_tokens == 1:
            request.move_to(RequestStatus.DECODING)
            self.book.finish(request, FinishReason.LENGTH, now)
            return request
        del self.book.awaiting[request.request_id]
        self.kv.publish(request, request.committed_tokens)
        self.book.joining[request.request_id] = request
        return None

    # ---- results ---------------------------------------------------------------------------------

    def commit(self, plan_id: int, result: StepResult, now: int) -> list[Request]:
        """Take in what a step brought; returns the requests that ended with it.

        Raises:
            PlanOrderError: `plan_id` is not the oldest plan in flight.
            ValueError: `result` does not fit the plan.
        """
        if not self.in_flight or self.in_flight[0].plan_id != plan_id:
            expected = self.in_flight[0].plan_id if self.in_flight else None
            raise PlanOrderError(
                f"plan {plan_id} committed, but the oldest in flight is {expected}"
            )
        plan = self.in_flight[0]
        if self._journal is not None:
            self._journal.commit(plan_id, result, now)
        if result.token_ids is not None:
            self._append_tokens(plan, result)
        self.in_flight.popleft()
        book = self.book
        book.oldest_in_flight = self.in_flight[0].plan_id if self.in_flight else None
        if result.failed:
            ended = self._fail(plan, now)
        else:
            ended = self._commit_verifies(plan, result, now) if plan.verifies else []
            if plan.prefills:
                self._commit_prefills(plan, now)
            if plan.decode_iteration >= 0:
                book.committed_iteration = plan.decode_iteration
            if result.stopped:
                ended += self._finish_stopped(plan, result, now)
            limits = book.batch.limits
            if book.draining or (limits and limits[0][0] <= book.batch.iteration):
                ended += self._finish_limits(plan, now)
        if self.kv.has_deferred:
            self.kv.plan_done(plan_id)
        self._commits += 1
        if self.config.check_every and self._commits % self.config.check_every == 0:
            from engine.core.invariants import check

            check(self)
        return ended

    def _append_tokens(self, plan: StepPlan, result: StepResult) -> None:
        rows, ids = plan.sampling_requests(), result.token_ids or ()
        if len(ids) != len(rows):
            raise ValueError(f"plan {plan.plan_id} samples {len(rows)} tokens, got {len(ids)}")
        for (request, epoch), token_id in zip(rows, ids, strict=True):
            if request.epoch == epoch and isinstance(request.tokens, TokenBuffer):
                request.tokens.append(int(token_id))

    def _commit_prefills(self, plan: StepPlan, now: int) -> None:
        for item in plan.prefills:
            request = item.request
            if item.epoch != request.epoch:
                continue
            request.committed_tokens = item.context_tokens + item.num_tokens
            if not item.samples:
                continue
            self.book.commit_first(request, now)
            self.kv.publish(request, request.committed_tokens)
            if request.handoff == KVHandoff.SEND and request.max_tokens > 1:
                self.book.draining[plan.plan_id].pop(request.request_id)
                self._hold_kv(request, now)

    def _commit_verifies(self, plan: StepPlan, result: StepResult, now: int) -> list[Request]:
        if len(result.verified) != len(plan.verifies):
            raise ValueError(
                f"plan {plan.plan_id} verifies {len(plan.verifies)} items, "
                f"got {len(result.verified)}"
            )
        ended = []
        for at, (item, kept) in enumerate(zip(plan.verifies, result.verified, strict=True)):
            request = item.request
            if not 0 <= kept <= item.num_tokens:
                raise ValueError(f"{kept} tokens kept of a verify item of {item.num_tokens}")
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
                self.kv.shrink(request, -(-request.scheduled_tokens // self.config.page_size))
            stopped = request.request_id in result.stopped  # which ends it with its own reason
            if request.committed_outputs >= request.max_tokens and not stopped:
                self.book.finish(request, FinishReason.LENGTH, now)
                ended.append(request)
        return ended

    def _finish_stopped(self, plan: StepPlan, result: StepResult, now: int) -> list[Request]:
        ended = []
        for request_id in result.stopped:
            request = self.book.requests.get(request_id)
            if request is not None and self._in_plan(plan, request):
                self.book.finish(request, FinishReason.STOP, now)
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
        book = self.book
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
        book, iteration = self.book, plan.decode_iteration
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

    # ---- fast-forward ----------------------------------------------------------------------------

    def stable_steps(self, limit: int) -> int:
        """How many further steps, at most `limit`, would be this very decode batch again.

        Holds as long as nobody calls `add`, `abort` or `transfer_done` and no text ends by itself.
        0 whenever that is not certain. Ask when a plan could be made.
        """
        book, batch = self.book, self.book.batch
        if (
            not batch.members
            or book.joining or book.prefilling or book.verifying or book.draining or book.retracted
            or self.kv.has_deferred or self.kv.evicted_pages or self.transfers.pending or
            book.holding or len(self.in_flight) != self.config.max_plans_in_flight - 1
        ):  # fmt: skip
            return 0
        if len(book.waiting.live) and (
            book.running < self.config.max_running_requests or self.config.policy == "priority"
        ):
            return 0
        for plan in self.in_flight:
            if not plan.is_pure_decode or plan.batch_version != batch.version or plan.transfers:
                return 0
        next_limit = batch.next_limit()
        steps = limit if next_limit is None else min(limit, next_limit - batch.iteration)
        if not self.in_flight:
            steps -= 1
        return self._steps_with_pages(steps)

    def _steps_with_pages(self, steps: int) -> int:
        """The first `steps` iterations, cut off where free pages (without eviction) end."""
        free, size = self.kv.pool.free_pages, self.config.page_size
        if steps <= 0 or len(self.book.batch) * (steps // size + 1) <= free:
            return max(0, steps)
        steps = min(steps, size)  # the calendar knows each member's next page, not the one after
        for done, need in enumerate(self.book.batch.pages_within(steps)):
            free -= need
            if free < 0:
                return done
        return steps

    def advance(self, steps: int, now: int) -> list[int]:
        """Do `steps` cycles of plan and commit at once, with no text ending in any of them.

        Equal in every respect to making the calls one by one; costs O(pages allocated). The plans
        in
        flight are the newest afterwards: their ids and contexts move on by `steps`.

        Args:
            steps: at most `stable_steps()`.
            now: time of the last of these commits, in ns.

        Returns:
            free pages after each of the `steps` plans.
        """
        if self._journal is not None:
            self._journal.advance(steps, now)
        batch, free, after = self.book.batch, self.kv.pool.free_pages, []
        size = len(batch)
        for iteration in range(batch.iteration + 1, batch.iteration + steps + 1):
            crossing = batch.crossing(iteration)
            if crossing:
                free -= len(crossing)
                self.kv.grow_each(crossing.values())
                batch.page_given(iteration)
            after.append(free)
        facts = [self._facts(plan) for plan in self.in_flight]
        waiting, block = len(self.book.waiting.live), self.stable_block_reason()
        facts += [
            (free, waiting, block, 0, 0, self.book.running, self.kv.cached_pages) for free in after
        ]
        batch.iteration += steps
        self.book.committed_iteration += steps
        self.next_plan_id += steps
        self._newest_sampling_plan += steps
        self.book.last_decode_plan_id += steps
        self._commits += steps
        for at, plan in enumerate(self.in_flight):
            plan.plan_id += steps
            plan.feeds_from = plan.plan_id - 1
            plan.decode_iteration += steps
            plan.decode_context += size * steps
            plan.decode_max_context += steps
            (
                plan.free_pages, plan.waiting, plan.block_reason, plan.retracted,
                plan.evicted_pages, plan.running, plan.cached_pages,
            ) = facts[at + steps]  # fmt: skip
        if self.in_flight:
            self.book.oldest_in_flight = self.in_flight[0].plan_id
        return after

    def stable_block_reason(self) -> AdmissionBlock:
        """Why the queue waits through the steps that `stable_steps` promises."""
        return AdmissionBlock.RUNNING_LIMIT if len(self.book.waiting.live) else AdmissionBlock.NONE

    def _facts(self, plan: StepPlan) -> tuple[int, int, AdmissionBlock, int, int, int, int]:
        return (
            plan.free_pages, plan.waiting, plan.block_reason, plan.retracted, plan.evicted_pages,
            plan.running, plan.cached_pages,
        )  # fmt: skip
