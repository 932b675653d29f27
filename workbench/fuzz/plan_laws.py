"""Laws of single plans, each called with the rig right after the plan was made and launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from engine.core.enums import AdmissionBlock
from engine.core.plan import StepPlan
from engine.core.request import Request
from workbench.fuzz.rig import Rig, require

PlanLaw = Callable[[Rig, StepPlan], None]


def rank(rig: Rig, request: Request) -> tuple[int, int]:
    """A request's place in a queue that is ordered by policy; smaller goes first."""
    urgent = request.priority if rig.config.policy == "priority" else 0
    return -urgent, request.sequence


def within_limits(rig: Rig, plan: StepPlan) -> None:
    """A step keeps to the token budget, the prefill limit and max_running_requests."""
    config, law = rig.config, "a step keeps to its limits"
    rows = len(plan.prefills) + len(plan.verifies) + len(plan.decode_members())
    tokens = plan.prefill_tokens + plan.decode_tokens
    require(tokens <= config.max_num_batched_tokens, law, tokens)
    require(plan.prefill_tokens <= config.prefill_budget, law, plan.prefill_tokens)
    require(rows <= config.max_running_requests, law, rows)
    require(rig.scheduler.book.running <= config.max_running_requests, law)
    most = 1 + config.num_speculative_tokens
    require(all(1 <= v.num_tokens <= most for v in plan.verifies), law, *plan.verifies)
    require(all(item.num_tokens >= 1 for item in plan.prefills), law, *plan.prefills)
    require(rows or plan.transfers, "a step does something")


def described_truly(rig: Rig, plan: StepPlan) -> None:
    """The sums of a plan are those of its rows, its counts those of the scheduler."""
    law = "a plan describes its rows"
    prefills = [(item.num_tokens, item.context_tokens) for item in plan.prefills]
    before = plan.decode_iteration - 1
    members = plan.decode_members()
    decodes = [(item.num_tokens, item.context_tokens) for item in plan.verifies]
    decodes += [(1, request.offset + before) for request, _ in members]
    told = (
        plan.prefill_tokens, plan.prefill_context, plan.prefill_pairs, plan.prefill_max_context,
        plan.decode_requests, plan.decode_tokens, plan.decode_context, plan.decode_max_context,
    )  # fmt: skip
    counted = (
        sum(n for n, _ in prefills),
        sum(context for _, context in prefills),
        sum(n * c + n * (n + 1) // 2 for n, c in prefills),
        max((n + c for n, c in prefills), default=0),
        len(decodes),
        sum(n for n, _ in decodes),
        sum(n + context for n, context in decodes),
        max((n + context for n, context in decodes), default=0),
    )
    require(told == counted, law, told, counted)
    samples = sum(item.samples for item in plan.prefills)
    require(plan.sampled_tokens == samples + plan.decode_tokens, law, plan.sampled_tokens)
    require(len(plan.sampling_requests()) == samples + len(members), law)
    sizes = [n for n in rig.config.cuda_graph_batch_sizes if n >= len(decodes)]
    graph = sizes[0] if sizes and decodes and not prefills else 0
    require(plan.graph_batch == graph, law, plan.graph_batch, graph)
    kv, book = rig.scheduler.kv, rig.scheduler.book
    stated = (plan.free_pages, plan.cached_pages, plan.waiting, plan.running)
    found = (kv.pool.free_pages, kv.cached_pages, len(book.waiting), book.running)
    require(stated == found, law, stated, found)


def fed_from_the_newest_source(rig: Rig, plan: StepPlan) -> None:
    """`feeds_from` is in flight, samples, and is no older than any row's last token."""
    law = "a plan names the newest plan that feeds it"
    others = [launched.plan for launched in rig.device.in_flight[:-1]]
    samplers = [p.plan_id for p in others if p.sampled_tokens]
    if not plan.decode_requests or not samplers:
        require(plan.feeds_from == -1, law, plan.feeds_from)
        return
    require(plan.feeds_from == samplers[-1], law, plan.feeds_from, samplers)
    rows = {(v.request.request_id, v.epoch) for v in plan.verifies}
    rows |= {(request.request_id, epoch) for request, epoch in plan.decode_members()}
    for other in others:
        sampled = {(r.request_id, epoch) for r, epoch in other.sampling_requests()}
        sampled |= {(v.request.request_id, v.epoch) for v in other.verifies}
        require(other.plan_id <= plan.feeds_from or not sampled & rows, law, other.plan_id)


def prompts_are_whole(rig: Rig, plan: StepPlan) -> None:
    """Without chunked prefill a prompt runs in one step, if any step can hold it."""
    if rig.config.chunked_prefill:
        return
    for item in plan.prefills:
        left = item.request.known_tokens - item.context_tokens
        whole = item.samples or left > rig.config.prefill_budget
        require(whole, "prompts are whole without chunks", item)


def mode_is_kept(rig: Rig, plan: StepPlan) -> None:
    """`prefill_first` never mixes; `mixed` never lets a request miss a step with prefill."""
    if not plan.prefills:
        return
    if rig.config.mode == "prefill_first":
        require(not plan.decode_requests, "prefill_first never mixes")
        return
    in_step = {request.request_id for request, _ in plan.decode_members()}
    require(in_step == set(rig.scheduler.book.batch.members), "all decode beside prefill")


def order_is_kept(rig: Rig, plan: StepPlan) -> None:  # noqa: ARG001 - all laws are called alike
    """Policies fcfs and priority admit nobody before somebody who goes first."""
    if rig.config.policy == "lpm":
        return
    retractions = rig.before.retractions
    after = {r.request_id: r for r in rig.scheduler.book.waiting}
    left = [r for r in after.values() if retractions[r.request_id] == r.retractions]
    if not left:
        return
    first = min(rank(rig, request) for request in left)
    for request in rig.before.waiting:
        if request.request_id not in after:
            require(rank(rig, request) < first, "nobody is overtaken", request)


def bypass_is_bounded(rig: Rig, plan: StepPlan) -> None:  # noqa: ARG001
    """Longest-prefix-first overtakes the oldest request a bounded number of times."""
    from engine.core.waiting_queue import MAX_BYPASS

    if rig.config.policy == "lpm":
        most = MAX_BYPASS + rig.config.max_running_requests
        for request in rig.scheduler.book.waiting:
            require(request.bypassed <= most, "overtaking has an end", request, request.bypassed)


def retraction_spares_the_oldest(rig: Rig, plan: StepPlan) -> None:
    """The oldest of the most urgent is retracted only for one that this plan admitted before it."""
    running = rig.before.running
    if not running or not plan.retracted:
        return

    def place(request: Request) -> tuple[int, int]:
        return -request.priority, request.sequence

    keep = min(running, key=place)
    if keep.retractions != rig.before.retractions[keep.request_id]:
        others = [rig.requests[i] for i in rig.before.retractions]
        fair = any(place(r) < place(keep) for r in others if r not in running)
        require(fair, "the oldest is spared", keep)


def retraction_waits_for_results(rig: Rig, plan: StepPlan) -> None:
    """Running requests are sent back for pages or priority only when no step is in flight."""
    if not plan.retracted:
        return
    before = rig.before.retractions
    if any(r.retractions != before[r.request_id] for r in rig.before.running):
        alone = len(rig.device.in_flight) == 1  # this plan
        require(alone, "retraction waits for results")


def late_transfers_are_over(rig: Rig, plan: StepPlan) -> None:  # noqa: ARG001
    """No transfer is open after its deadline."""
    for transfer in rig.scheduler.transfers.pending.values():
        require(transfer.deadline_ns > rig.now, "a transfer ends with its deadline", transfer)


def block_reason_is_true(rig: Rig, plan: StepPlan) -> None:
    """The stated reason why the head of the queue waits is one that holds."""
    config, book, reason = rig.config, rig.scheduler.book, plan.block_reason
    law = f"{reason.name} is why the head of the queue waits"
    if not len(book.waiting):
        require(reason == AdmissionBlock.NONE, law)
        return
    if reason == AdmissionBlock.NONE:  # decodes wait for results, or were sent back afterwards
        rows = plan.prefills or plan.verifies or plan.decode_requests
        require(plan.retracted or not rows, law)
    available = rig.scheduler.kv.available_pages
    left = config.max_num_batched_tokens - plan.decode_tokens * (config.mode == "mixed")
    capped = config.max_prefill_tokens is not None and config.max_prefill_tokens < left
    left = min(left, config.max_prefill_tokens or left) - plan.prefill_tokens
    if reason == AdmissionBlock.RUNNING_LIMIT:
        drained = len(book.draining.get(plan.plan_id, ()))
        full = book.running + drained >= config.max_running_requests
        require(full or plan.retracted, law, book.running)
    elif reason in (AdmissionBlock.TOKEN_BUDGET, AdmissionBlock.PREFILL_LIMIT):
        require(left == 0 or not config.chunked_prefill, law, left)
        require((reason == AdmissionBlock.PREFILL_LIMIT) == capped, law)
    elif reason == AdmissionBlock.RETRACTION:
        require(plan.retracted > 0, law)
    elif reason == AdmissionBlock.KV_PAGES and book.prefilling:
        none = available == 0 or plan.retracted  # which came after
        require(none or not config.chunked_prefill, law, available)
    elif reason == AdmissionBlock.KV_PAGES and not plan.retracted:
        longest = max(r.known_tokens for r in book.waiting)
        require(longest > available * config.page_size, law, longest, available)


PLAN_LAWS: Final[tuple[PlanLaw, ...]] = (
    within_limits,
    described_truly,
    fed_from_the_newest_source,
    prompts_are_whole,
    mode_is_kept,
    order_is_kept,
    bypass_is_bounded,
    retraction_spares_the_oldest,
    retraction_waits_for_results,
    late_transfers_are_over,
    block_reason_is_true,
)
