"""A recount of everything the core keeps as running totals, from scratch.

`check` walks all requests, pages and tree nodes and raises with a readable difference. It costs
O(pages + nodes + requests): tests and the fuzzer call it after every event, production every n
steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.core.enums import RequestStatus
from engine.core.radix_cache import RadixCache
from engine.core.radix_node import NAME_BYTES, RadixNode
from engine.core.request import Request

if TYPE_CHECKING:
    from engine.core.scheduler import Scheduler


class InvariantError(AssertionError):
    """The core's books do not add up; every difference found is listed."""


def check(scheduler: Scheduler) -> None:
    """Recount a scheduler's state.

    Raises:
        InvariantError: anything differs.
    """
    problems = [
        *_page_problems(scheduler),
        *_request_problems(scheduler),
        *_batch_problems(scheduler),
        *(cache_problems(scheduler.kv.cache) if scheduler.kv.cache else ()),
        *_lock_problems(scheduler),
    ]
    if problems:
        raise InvariantError("\n".join(problems))


def _private_pages(scheduler: Scheduler, request: Request) -> list[int]:
    return request.pages[request.cached_depth // scheduler.config.page_size :]


def _page_problems(scheduler: Scheduler) -> Iterator[str]:
    """Every page has exactly one owner: free list, tree, a request, or a plan in flight."""
    kv = scheduler.kv
    owners: dict[int, list[str]] = {}

    def own(pages: list[int], owner: str) -> None:
        for page in pages:
            owners.setdefault(page, []).append(owner)

    own(kv.pool.free_list(), "free")
    for namespace, node in kv.cache.nodes() if kv.cache else ():
        own(node.pages, f"node {node.node_id} of namespace {namespace}")
    for request in scheduler.book.requests.values():
        own(_private_pages(scheduler, request), f"request {request.request_id}")
    deferred = {page for _, pages, _ in kv.deferred() for page in pages}
    own(sorted(deferred), "a plan in flight")
    leased = {page for lease in kv.pool.leases().values() for page in lease.pages}
    own([page for page in leased if page not in owners], "a transfer")
    for page in range(kv.pool.num_pages):
        holders = owners.pop(page, [])
        if len(holders) != 1:
            yield f"page {page} should have one owner, has {holders or 'none'}"
    if owners:
        yield f"pages outside the pool are owned: {sorted(owners)[:5]}"
    for page in leased.intersection(kv.pool.free_list()):
        yield f"page {page} is free although a transfer holds a lease on it"
    held = sum(len(request.pages) for request in scheduler.book.requests.values())
    if held != kv.held_pages:
        yield f"held_pages is {kv.held_pages}, page tables hold {held}"


def _request_problems(scheduler: Scheduler) -> Iterator[str]:
    """Each live request is in the one place that its status names, with enough pages."""
    book, size = scheduler.book, scheduler.config.page_size
    places = {
        "waiting": list(book.waiting),
        "prefilling": list(book.prefilling.values()),
        "joining": list(book.joining.values()),
        "batch": list(book.batch.members.values()),
        "verifying": list(book.verifying.values()),
        "draining": [r for place in book.draining.values() for r in place.values()],
        "holding": list(book.holding.values()),
        "awaiting": list(book.awaiting.values()),
    }
    found: dict[int, list[str]] = {}
    for name, requests in places.items():
        for request in requests:
            found.setdefault(request.request_id, []).append(name)
    for request_id, request in book.requests.items():
        names = found.pop(request_id, [])
        if len(names) != 1 or names[0] not in _PLACES[request.status]:
            yield f"{request} should be in one of {_PLACES[request.status]}, is in {names}"
        if request.status == RequestStatus.WAITING and (request.pages or request.node):
            yield f"{request} waits but holds pages or a lock"
        tokens = request.scheduled_tokens
        if request_id in book.batch.members:
            tokens = request.offset + book.batch.iteration
        if tokens > len(request.pages) * size:
            yield f"{request} has {tokens} tokens planned and {len(request.pages)} pages of {size}"
        if book.output_tokens(request) > request.max_tokens:
            yield f"{request} generated {book.output_tokens(request)} tokens"
    if found:
        yield f"requests that are not alive are still listed: {found}"
    slots = sum(
        len(places[name]) for name in ("prefilling", "joining", "batch", "verifying", "awaiting")
    )
    if book.running != slots:
        yield f"running is {book.running}, recounted {slots}"
    if book.running > scheduler.config.max_running_requests:
        yield f"{book.running} requests run, allowed are {scheduler.config.max_running_requests}"
    promised = sum(
        book.pages_promised(r) for r in book.requests.values() if r.status != RequestStatus.WAITING
    )
    if promised != book.promised_pages:
        yield f"promised_pages is {book.promised_pages}, recounted {promised}"


_PLACES: dict[RequestStatus, tuple[str, ...]] = {
    RequestStatus.WAITING: ("waiting",),
    RequestStatus.PREFILLING: ("prefilling", "joining", "draining"),
    RequestStatus.DECODING: ("batch", "verifying", "draining"),
    RequestStatus.HOLDING_KV: ("holding",),
    RequestStatus.AWAITING_KV: ("awaiting", "joining"),
    RequestStatus.FINISHED: (),
}


def _batch_problems(scheduler: Scheduler) -> Iterator[str]:
    """The decode batch's sums and calendars equal a recount over its members."""
    batch, size = scheduler.book.batch, scheduler.config.page_size
    members = list(batch.members.values())
    now = batch.iteration
    context = sum(r.offset + now for r in members)
    if batch.context_tokens(now) != context:
        yield f"context sum is {batch.context_tokens(now)}, recounted {context}"
    longest = max((r.offset + now for r in members), default=0)
    if batch.max_context_tokens(now) != longest:
        yield f"longest context is {batch.max_context_tokens(now)}, recounted {longest}"
    remaining = sum(batch.limit_of(r) - now for r in members)
    if batch.remaining_tokens() != remaining:
        yield f"remaining tokens are {batch.remaining_tokens()}, recounted {remaining}"
    limit = min((batch.limit_of(r) for r in members), default=None)
    if batch.next_limit() != limit:
        yield f"next limit is {batch.next_limit()}, recounted {limit}"
    for request in members:
        crossing = len(request.pages) * size - request.offset + 1
        if batch.crossing(crossing).get(request.request_id) is not request:
            yield f"{request} should be listed for a page at iteration {crossing}"


def _lock_problems(scheduler: Scheduler) -> Iterator[str]:
    """Each node's lock count is the number of holders at or below it."""
    cache = scheduler.kv.cache
    if cache is None:
        return
    holders = [r.node for r in scheduler.book.requests.values() if r.node is not None]
    holders += [node for _, _, node in scheduler.kv.deferred() if node is not None]
    holders += scheduler.transfers.locked.values()
    expected: Counter[int] = Counter()
    for holder in holders:
        step: RadixNode | None = holder
        while step is not None:
            expected[step.node_id] += 1
            step = step.parent
    for _, node in cache.nodes():
        if node.locks != expected[node.node_id]:
            yield f"node {node.node_id} counts {node.locks} locks, has {expected[node.node_id]}"
    for request in scheduler.book.requests.values():
        if request.node is not None and cache.depth_tokens(request.node) != request.cached_depth:
            yield f"{request} counts {request.cached_depth} cached tokens, its node says otherwise"


def cache_problems(cache: RadixCache) -> Iterator[str]:
    """The tree's shape, totals and eviction candidates, recounted."""
    page_bytes = cache.page_size * 4
    evictable = protected = shared = 0
    queued = {id(node) for node in cache.queued_nodes()}
    for _, node in cache.nodes():
        own = not node.key  # of a text without ids
        if not (own or len(node.key) == len(node.pages) * page_bytes) or not node.pages:
            yield f"node {node.node_id}: {len(node.key)} key bytes for {len(node.pages)} pages"
        if not 0 <= node.proven <= len(node.pages):
            yield f"node {node.node_id} has {len(node.pages)} pages, {node.proven} of them proven"
        if node.locks < 0:
            yield f"node {node.node_id} has {node.locks} locks"
        if node.locks:
            protected += len(node.pages)
            shared += (node.locks - 1) * len(node.pages)
        else:
            evictable += len(node.pages)
        if not node.locks and not node.children and id(node) not in queued:
            yield f"node {node.node_id} is evictable but not in the eviction heap"
    for node in (*cache.roots().values(), *(node for _, node in cache.nodes())):
        for first, child in node.children.items():
            alike = node.parent is None or bool(node.key) == bool(child.key)
            named = _filed_rightly(node, child, page_bytes)
            if child.parent is not node or child.first != first or not (alike and named):
                yield f"node {child.node_id} is filed wrongly below node {node.node_id}"
            if child.proven and node.proven < len(node.pages):
                yield f"node {child.node_id} is proven, its parent {node.node_id} is not"
            if child.locks > node.locks and node.parent is not None:  # roots count no locks
                yield f"node {child.node_id} has more locks than its parent {node.node_id}"
    if shared != cache.shared_pages:
        yield f"shared_pages is {cache.shared_pages}, recounted {shared}"
    if (evictable, protected) != (cache.evictable_pages, cache.protected_pages):
        yield (
            f"evictable/protected pages are {cache.evictable_pages}/{cache.protected_pages}, "
            f"recounted {evictable}/{protected}"
        )


def _filed_rightly(node: RadixNode, child: RadixNode, page_bytes: int) -> bool:
    """Whether `child` has the kind of name that is due to it below `node`."""
    if child.withdrawn or not (child.key or node.parent):
        return len(child.first) == NAME_BYTES
    return child.first == child.key[:page_bytes]
