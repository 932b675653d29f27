"""The KV memory of one replica: page pool and prefix cache together, as the scheduler uses them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from engine.core.enums import MemoryOp, RadixOp
from engine.core.events import EventLog
from engine.core.page_pool import PagePool, page_runs
from engine.core.radix_cache import RadixCache
from engine.core.radix_node import PrefixMatch, RadixNode
from engine.core.radix_tree import Eviction
from engine.core.request import Request
from engine.core.token_ids import Int32

CACHE_OWNER = -1


class _Deferred(NamedTuple):
    """Pages and a lock that an unfinished plan may still touch."""

    plan_id: int
    pages: list[int]
    node: RadixNode | None


class KvMemory:
    """Gives pages to requests, shares prefixes between them and takes everything back.

    When free pages run short it evicts from the prefix cache, a batch at a time (`1/256` of the
    pool at least), so that a full cache does not cost an eviction per step.

    Attributes:
        pool, cache: the parts; `cache` is None when prefix caching is off.
        evicted_pages: evicted since the last plan.
        held_pages: entries of all running requests' page tables.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        *,
        prefix_cache: bool,
        eviction: Eviction,
        events: EventLog | None = None,
        replica: int = 0,
        next_plan_id: Callable[[], int] = lambda: 0,
    ) -> None:
        self.pool = PagePool(num_pages, page_size)
        self._write_memory = events.write("memory") if events else None
        self._write_radix = events.write("radix") if events else None
        self._replica = replica
        self._next_plan_id = next_plan_id
        listener = self._record_radix if self._write_radix else None
        self.cache = RadixCache(page_size, eviction, listener) if prefix_cache else None
        self.evicted_pages = 0
        self.held_pages = 0
        self._deferred: list[_Deferred] = []
        self._eviction_batch = num_pages // 256

    @property
    def available_pages(self) -> int:
        """Pages that are free or could be at once."""
        cache = self.cache
        return self.pool.free_pages + (cache.evictable_pages if cache else 0)

    @property
    def cached_pages(self) -> int:
        """Pages that only the prefix cache holds."""
        return self.cache.evictable_pages if self.cache else 0

    @property
    def shared_tokens(self) -> int:
        """KV tokens that requests share, once for each but one of them."""
        return self.cache.shared_pages * self.pool.page_size if self.cache else 0

    @property
    def has_deferred(self) -> bool:
        """Whether pages wait for a plan in flight before they become free."""
        return bool(self._deferred)

    def deferred(self) -> list[tuple[int, list[int], RadixNode | None]]:
        """What waits for a plan: (plan id, pages, locked node), for the recount."""
        return [(entry.plan_id, entry.pages, entry.node) for entry in self._deferred]

    def ensure_free(self, count: int) -> bool:
        """Make `count` pages free, evicting if necessary; False (and no change) if impossible."""
        missing = count - self.pool.free_pages
        if missing <= 0:
            return True
        if self.cache is None or missing > self.cache.evictable_pages:
            return False
        self.evict(max(missing, self._eviction_batch))
        return True

    def evict(self, count: int) -> None:
        """Move up to `count` pages from the prefix cache to the free list."""
        if self.cache is None:
            return
        pages = self.cache.evict(count)
        self.evicted_pages += len(pages)
        self.pool.free(pages)
        if self._write_memory is not None:
            self._record(MemoryOp.EVICT, CACHE_OWNER, pages)

    def grow(self, request: Request, count: int) -> None:
        """Append `count` free pages to a request's page table; call `ensure_free` before."""
        pages = self.pool.alloc(count)
        request.pages += pages
        self.held_pages += count
        if self._write_memory is not None:
            self._record(MemoryOp.ALLOC, request.request_id, pages)

    def grow_each(self, requests: Collection[Request]) -> None:
        """Append one free page to each of several page tables, in order."""
        pages = self.pool.alloc(len(requests))
        self.held_pages += len(pages)
        for request in requests:
            request.pages.append(pages.pop())
        if self._write_memory is not None:
            for request in requests:
                self._record(MemoryOp.ALLOC, request.request_id, request.pages[-1:])

    def match(self, request: Request) -> PrefixMatch | None:
        """The cached prefix of a waiting request; at least its last known token is left out.

        None without a cache, and for an own text that is not there; `attach_nothing` counts it.
        """
        if self.cache is None:
            return None
        most = request.known_tokens - 1
        if request.tokens is None:
            if not request.own_text and self._write_radix is None:
                return None  # the same as a match of the root, whose locks are only told
            return self.cache.match_own(request.own_text, most, request.tenant)
        return self.cache.match(request.tokens.ids(0, most), request.tenant)

    def cached_tokens(self, ids: Int32, tenant: int) -> int:
        """Length of the longest cached prefix of `ids`, changing nothing."""
        return self.cache.peek(ids, tenant) if self.cache else 0

    def peek(self, request: Request) -> int:
        """Tokens that `match` would find, changing nothing.

        The request remembers the last answer until this cache changes, or another one is asked.
        """
        cache, tokens = self.cache, request.tokens
        if cache is None:
            return 0
        if tokens is None:
            return cache.peek_own(request.own_text, request.known_tokens - 1, request.tenant)
        asked, version, known, found = request.peek
        if asked is not cache or version != cache.version or known != request.known_tokens:
            found = cache.peek(tokens.ids(0, request.known_tokens - 1), request.tenant)
            request.peek = (cache, cache.version, request.known_tokens, found)
        return found

    def attach(self, request: Request, match: PrefixMatch) -> None:
        """Start a request's page table with a cached prefix that its caller has locked."""
        request.node = match.node
        request.pages = list(match.pages)
        request.cached_depth = len(match.pages) * self.pool.page_size
        request.scheduled_tokens = request.committed_tokens = request.cached_depth
        self.held_pages += len(match.pages)

    def attach_nothing(self, request: Request) -> None:
        """Start the empty page table of a request for which `match` gave None."""
        if self.cache is not None:
            self.cache.miss_own(request.known_tokens - 1)

    def publish(self, request: Request, committed_tokens: int) -> None:
        """Let others reuse the KV of a running request's first `committed_tokens` tokens.

        If another request has published some of it meanwhile, nothing happens: the page table of a
        running request never changes, and holding both copies could exceed the pool.
        """
        cache, size = self.cache, self.pool.page_size
        stop = committed_tokens // size * size
        if cache is None or stop <= request.cached_depth:
            return
        if request.tokens is None:
            self._insert_own(cache, request, stop)
            return
        ids = request.tokens.ids(request.cached_depth, stop)
        node = request.node or cache.root(request.tenant)
        if not cache.continues(node, ids):
            self._insert(cache, request, ids)

    def prove(self, request: Request) -> None:
        """A token came of a request: what the cache holds of its text can be relied upon."""
        if self.cache is not None and request.node is not None:
            self.cache.prove(request.node)

    def withdraw(self, request: Request) -> None:
        """No number came of a request: nobody else gets what it relied upon unseen."""
        if self.cache is not None and request.node is not None:
            self.cache.withdraw(request.node)

    def _keep(self, request: Request, committed_tokens: int) -> list[int]:
        """Cache what is committed in whole pages; returns duplicates that the cache refused."""
        cache, size = self.cache, self.pool.page_size
        stop = committed_tokens // size * size
        if cache is None or stop <= request.cached_depth:
            return []
        if request.tokens is None:
            self._insert_own(cache, request, stop)
            return []
        return self._insert(cache, request, request.tokens.ids(request.cached_depth, stop))

    def _insert_own(self, cache: RadixCache, request: Request, stop: int) -> None:
        """Hand the pages up to token `stop` of a request without ids to the cache, for itself."""
        size = self.pool.page_size
        offered = request.pages[request.cached_depth // size : stop // size]
        node = cache.insert_own(request.node or cache.root(request.tenant), offered)
        if request.cached_depth == 0:
            request.own_text = node.first
        request.node, request.cached_depth = node, stop
        if self._write_memory is not None:
            self._record(MemoryOp.CACHE, CACHE_OWNER, offered)

    def _insert(self, cache: RadixCache, request: Request, ids: Int32) -> list[int]:
        """Hand pages to the cache and lock the longer prefix; returns the duplicates it refused."""
        size = self.pool.page_size
        start = request.cached_depth // size
        offered = request.pages[start : start + len(ids) // size]
        node = request.node or cache.root(request.tenant)
        result = cache.insert_locked(node, ids, offered)
        request.node = result.node
        request.cached_depth += len(ids)
        self._record(MemoryOp.CACHE, CACHE_OWNER, offered[result.duplicate_pages :])
        return offered[: result.duplicate_pages]

    def release(self, request: Request, committed_tokens: int, until_plan: int | None) -> None:
        """Take everything back, keeping the committed part cached.

        Args:
            request: its page table is empty afterwards.
            committed_tokens: KV entries that are surely written; nothing new is cached of a request
                that a transfer still reads or writes.
            until_plan: a plan in flight that may still touch the pages; they become free when
                `plan_done` is called with it or a later one. None: free at once.
        """
        self.held_pages -= len(request.pages)
        if self.pool.any_leased(request.pages):  # or pages that evicting does not free get cached
            committed_tokens = request.cached_depth
        private = self._keep(request, committed_tokens)
        if request.cached_depth:
            private += request.pages[request.cached_depth // self.pool.page_size :]
        else:
            private += request.pages
        if self._write_memory is not None:
            self._record(MemoryOp.FREE, request.request_id, private)
        if until_plan is not None:
            self._deferred.append(_Deferred(until_plan, private, request.node))
        else:
            if request.node is not None and self.cache is not None:
                self.cache.unlock(request.node)
            self.pool.free(private)
        request.pages = []
        request.node, request.cached_depth = None, 0
        request.scheduled_tokens = request.committed_tokens = 0

    def shrink(self, request: Request, keep_pages: int) -> None:
        """Return the pages of rejected slots at the end of a page table."""
        surplus = request.pages[keep_pages:]
        if surplus:
            del request.pages[keep_pages:]
            self.held_pages -= len(surplus)
            self.pool.free(surplus)
            self._record(MemoryOp.FREE, request.request_id, surplus)

    def plan_done(self, plan_id: int) -> None:
        """Free what waited for plans up to `plan_id`."""
        if self._deferred:
            ready = [entry for entry in self._deferred if entry.plan_id <= plan_id]
            self._deferred = [entry for entry in self._deferred if entry.plan_id > plan_id]
            for entry in ready:
                if entry.node is not None and self.cache is not None:
                    self.cache.unlock(entry.node)
                self.pool.free(entry.pages)

    def _record(self, op: MemoryOp, owner: int, pages: list[int]) -> None:
        if self._write_memory is not None:
            step = self._next_plan_id()
            for start, count in page_runs(pages):
                self._write_memory((step, self._replica, op, owner, start, count))

    def _record_radix(self, op: RadixOp, node: RadixNode) -> None:
        if self._write_radix is not None:
            parent = node.parent.node_id if node.parent else -1
            tokens = len(node.pages) * self.pool.page_size
            row = (
                self._next_plan_id(),
                self._replica,
                op,
                node.node_id,
                parent,
                tokens,
                node.locks,
            )
            self._write_radix(row)
