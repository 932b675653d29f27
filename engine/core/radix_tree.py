"""A radix tree over real token ids whose nodes own KV pages: matching, inserting, locks, eviction.

Keys are whole pages of int32 token ids, kept as bytes, so that comparing a 10,000-token prefix is a
few memory compares and a hash collision can never pass off one user's text as another's. Each
namespace (tenant, salt, adapter) has a tree of its own.

A request holds a *lock* on the deepest node of its prefix, which protects the whole path. Nodes
without locks and children are evictable; they wait in a heap whose entries are refreshed lazily, so
neither a hit nor an eviction ever scans the tree. Splitting a node keeps the lower half's identity:
a locked node always stands for the same prefix.

Source of the idea: RadixAttention (Zheng et al., SGLang, 2024). The tree never moves a page under a
running request: where two requests computed the same prefix, the second keeps its own copy.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final, Literal

import numpy as np

from engine.core.enums import RadixOp
from engine.core.radix_node import InsertResult, PrefixMatch, RadixListener, RadixNode
from engine.core.token_ids import Int32

Eviction = Literal["lru", "lfu"]

_TOKEN_BYTES: Final = 4


class RadixTree:
    """A radix tree per namespace with reference-counted locks and LRU or LFU eviction.

    Attributes:
        evictable_pages: pages of unlocked nodes; all of them can be evicted.
        protected_pages: pages of locked nodes.
        shared_pages: of those, once more for each lock but the first.
        version: changes whenever the set of cached prefixes does.
        lookups, lookup_tokens, hit_tokens: how often `match` was asked, for how many tokens, and
            how many of them it found; without those that `forget` took back.
    """

    def __init__(
        self, page_size: int, eviction: Eviction = "lru", listener: RadixListener | None = None
    ) -> None:
        self.page_size = page_size
        self.evictable_pages = 0
        self.protected_pages = self.shared_pages = 0
        self.version = 0
        self.lookups = self.lookup_tokens = self.hit_tokens = 0
        self._page_bytes = page_size * _TOKEN_BYTES
        self._lfu = eviction == "lfu"
        self._listener = listener
        self._roots: dict[int, RadixNode] = {}
        self._heap: list[tuple[int, int, int, RadixNode]] = []
        self._clock = 0
        self._next_id = 0

    def root(self, namespace: int) -> RadixNode:
        """The empty prefix of a namespace. It owns no page and is never evicted, locked or not."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = self._new_node(b"", b"", [], None)
        return root

    def match(self, ids: Int32, namespace: int = 0) -> PrefixMatch:
        """The longest cached prefix of `ids`, in whole pages; marks it as used.

        Splits a node when the match ends inside it, so that the result can be locked. Lock it
        before the next call that may evict.
        """
        node, pages = self.root(namespace), list[int]()
        blob, at = ids.tobytes(), 0
        self._clock += 1
        while (child := self._descend(node, blob, at)) is not None:
            child.hits += 1
            pages += child.pages
            at += len(child.key)
            node = child
        self.lookups += 1
        self.lookup_tokens += len(ids)
        self.hit_tokens += at // _TOKEN_BYTES
        return PrefixMatch(node, pages, len(ids))

    def forget(self, match: PrefixMatch) -> None:
        """Take a `match` back that nobody used: it counts as no hit.

        A request that waits is matched again and again, which must not make its prefix look
        popular. Call it before `unlock`.
        """
        self.lookups -= 1
        self.lookup_tokens -= match.lookup_tokens
        self.hit_tokens -= len(match.pages) * self.page_size
        step = match.node
        while (parent := step.parent) is not None:
            step.hits -= 1
            step = parent

    def peek(self, ids: Int32, namespace: int = 0) -> int:
        """Length in tokens of the longest cached prefix, changing nothing."""
        node, blob, at = self._roots.get(namespace), ids.tobytes(), 0
        while node is not None and (child := self._child(node, blob, at)) is not None:
            length = self._common_bytes(child.key, blob, at)
            at += length
            node = child if length == len(child.key) else None
        return at // _TOKEN_BYTES

    def continues(self, node: RadixNode, ids: Int32) -> bool:
        """Whether the tree holds the first page of `ids` after the prefix of `node`."""
        return bool(node.children) and ids[: self.page_size].tobytes() in node.children

    def insert(self, node: RadixNode, ids: Int32, pages: list[int]) -> InsertResult:
        """Cache what follows the prefix of `node`: whole pages of `ids`, held by `pages`.

        The tree takes ownership of all `pages` but the first `duplicate_pages`, whose content it
        already had; those stay the caller's. Trailing ids that fill no page are ignored.

        Raises:
            ValueError: fewer pages than whole pages of ids.
        """
        return self._insert(node, ids, pages, lock=False)

    def insert_locked(self, node: RadixNode, ids: Int32, pages: list[int]) -> InsertResult:
        """`insert` by the holder of a lock on `node`, which moves to the end of what was inserted.

        A leaf that nobody else holds grows instead of getting a child, unless under LFU it has
        hits, which what follows it does not have.

        Raises:
            ValueError: fewer pages than whole pages of ids, or `node` is not locked.
        """
        if self._can_grow(node):
            count = self._whole_pages(ids, pages)
            self._grow(node, ids[: count * self.page_size].tobytes(), pages[:count])
            return InsertResult(node, 0)
        result = self._insert(node, ids, pages, lock=True)
        self._tell(RadixOp.LOCK, result.node)
        self._tell(RadixOp.UNLOCK, node)
        return result

    def lock(self, node: RadixNode) -> None:
        """Protect the path from `node` to the root from eviction; locks nest."""
        step = node
        while (parent := step.parent) is not None:
            self._lock_one(step)
            step = parent
        if self._listener is not None:
            self._listener(RadixOp.LOCK, node)

    def unlock(self, node: RadixNode) -> None:
        """Undo one `lock(node)`.

        Raises:
            ValueError: the node is not locked.
        """
        if node.locks < 1 and node.parent is not None:
            raise ValueError(f"node {node.node_id} is not locked")
        step = node
        while (parent := step.parent) is not None:
            step.locks -= 1
            if step.locks:
                self.shared_pages -= len(step.pages)
            else:
                self.evictable_pages += len(step.pages)
                self.protected_pages -= len(step.pages)
                self._queue_if_evictable(step)
            step = parent
        if self._listener is not None:
            self._listener(RadixOp.UNLOCK, node)

    def evict(self, count: int) -> list[int]:
        """Give up `count` pages of least value, leaf ends first; fewer if no more are evictable."""
        freed: list[int] = []
        heap = self._heap
        while len(freed) < count and heap:
            hits, last_access, _, node = heap[0]
            if node.locks or node.children or node.parent is None:
                heapq.heappop(heap)[3].queued = False
                continue
            if last_access != node.last_access or (self._lfu and hits != node.hits):
                heapq.heapreplace(heap, self._entry(node))
                continue
            missing = count - len(freed)
            if missing < len(node.pages):
                freed += self._trim(node, missing)
            else:
                heapq.heappop(heap)
                freed += self._remove(node)
        if freed:
            self.version += 1
        return freed

    def clear(self) -> list[int]:
        """Evict everything that is not locked; returns the freed pages."""
        return self.evict(self.evictable_pages)

    def depth_tokens(self, node: RadixNode) -> int:
        """Length of the prefix that a node stands for."""
        total, step = 0, node
        while step.parent is not None:
            total += len(step.pages)
            step = step.parent
        return total * self.page_size

    def nodes(self) -> Iterator[tuple[int, RadixNode]]:
        """All nodes but the roots, as (namespace, node), parents first."""
        for namespace, root in self._roots.items():
            stack = list(root.children.values())
            while stack:
                node = stack.pop()
                yield namespace, node
                stack.extend(node.children.values())

    def roots(self) -> dict[int, RadixNode]:
        """The root of each namespace (a copy of the mapping)."""
        return dict(self._roots)

    def queued_nodes(self) -> list[RadixNode]:
        """Nodes with an entry in the eviction heap, for the recount."""
        return [entry[3] for entry in self._heap]

    def _child(self, node: RadixNode, blob: bytes, at: int) -> RadixNode | None:
        return node.children.get(blob[at : at + self._page_bytes])

    def _descend(self, node: RadixNode, blob: bytes, at: int) -> RadixNode | None:
        """The child that `blob` continues with from `at` on, split where they part; now used."""
        size = self._page_bytes
        child = node.children.get(blob[at : at + size])
        if child is None:
            return None
        key = child.key
        if not blob.startswith(key, at):
            child = self._split(child, self._common_bytes(key, blob, at) // size)
        self._use(child)
        return child

    def _use(self, node: RadixNode) -> None:
        node.last_access = self._clock
        self._tell(RadixOp.TOUCH, node)

    def _common_bytes(self, key: bytes, blob: bytes, at: int) -> int:
        """Bytes of `key`, in whole pages, that `blob` repeats from `at` on; at least one page."""
        part = blob[at : at + len(key)]
        if part == key:
            return len(key)
        shorter = min(len(part), len(key)) // _TOKEN_BYTES
        ours = np.frombuffer(key, np.int32, shorter)
        theirs = np.frombuffer(part, np.int32, shorter)
        differs = ours != theirs
        first = int(differs.argmax())
        same = first if differs[first] else shorter
        return same // self.page_size * self._page_bytes

    def _split(self, node: RadixNode, pages: int) -> RadixNode:
        """Cut a node after `pages` pages; returns the new upper half, the lower keeps its id."""
        cut = pages * self._page_bytes
        parent = node.parent
        if parent is None:
            raise ValueError("a root cannot be split")
        upper = self._new_node(node.first, node.key[:cut], node.pages[:pages], parent)
        upper.locks, upper.hits, upper.last_access = node.locks, node.hits, node.last_access
        upper.proven, node.proven = min(node.proven, pages), max(0, node.proven - pages)
        upper.withdrawn, node.withdrawn = node.withdrawn, False
        node.key, node.pages, node.parent = node.key[cut:], node.pages[pages:], upper
        node.first = node.key[: self._page_bytes]
        upper.children[node.first] = node
        parent.children[upper.first] = upper
        self._tell(RadixOp.SPLIT, upper)
        return upper

    def _insert(self, node: RadixNode, ids: Int32, pages: list[int], *, lock: bool) -> InsertResult:
        """Insert below `node` and, if so wished, lock what lies between it and the end."""
        end = self._whole_pages(ids, pages)
        blob, at = ids[: end * self.page_size].tobytes(), 0
        self._clock += 1
        while (child := self._descend(node, blob, at)) is not None:
            at += len(child.key)
            node = child
            if lock:
                self._lock_one(child)
        duplicates = at // self._page_bytes
        if duplicates < end:
            node = self._add_leaf(node, blob[at:], pages[duplicates:end], lock)
        return InsertResult(node, duplicates)

    def _whole_pages(self, ids: Int32, pages: list[int]) -> int:
        count = len(ids) // self.page_size
        if len(pages) < count:
            raise ValueError(f"{count} full pages of ids but only {len(pages)} pages")
        return count

    def _add_leaf(self, parent: RadixNode, key: bytes, pages: list[int], lock: bool) -> RadixNode:
        leaf = self._new_node(key[: self._page_bytes], key, pages, parent)
        leaf.last_access = self._clock
        parent.children[leaf.first] = leaf
        self.version += 1
        self.evictable_pages += len(pages)
        if lock:
            self._lock_one(leaf)
        else:
            self._queue_if_evictable(leaf)
        self._tell(RadixOp.INSERT, leaf)
        return leaf

    def _can_grow(self, node: RadixNode) -> bool:
        """Whether the holder of a lock on `node` may lengthen it.

        Raises:
            ValueError: it is not locked.
        """
        if node.parent is None:
            return False
        if node.locks < 1:
            raise ValueError(f"node {node.node_id} is not locked")
        return node.locks == 1 and not (node.children or (self._lfu and node.hits))

    def _grow(self, leaf: RadixNode, key: bytes, pages: list[int]) -> None:
        """Lengthen a locked leaf."""
        self._clock += 1
        self.version += 1
        leaf.key += key
        leaf.pages += pages
        leaf.last_access = self._clock
        self.protected_pages += len(pages)
        self._tell(RadixOp.INSERT, leaf)

    def _lock_one(self, node: RadixNode) -> None:
        if node.locks:
            self.shared_pages += len(node.pages)
        else:
            self.evictable_pages -= len(node.pages)
            self.protected_pages += len(node.pages)
        node.locks += 1

    def _remove(self, leaf: RadixNode) -> list[int]:
        parent = leaf.parent
        if parent is None:
            raise ValueError("a root cannot be evicted")
        del parent.children[leaf.first]
        leaf.queued = False
        self.evictable_pages -= len(leaf.pages)
        if self._listener is not None:
            self._listener(RadixOp.EVICT, leaf)
        leaf.parent = None
        if not parent.children:
            self._queue_if_evictable(parent)
        return leaf.pages

    def _trim(self, leaf: RadixNode, count: int) -> list[int]:
        """Evict only the last `count` pages of a leaf."""
        kept = len(leaf.pages) - count
        pages = leaf.pages[kept:]
        del leaf.pages[kept:]
        leaf.key = leaf.key[: kept * self._page_bytes]
        leaf.proven = min(leaf.proven, kept)
        self.evictable_pages -= count
        if self._listener is not None:
            self._listener(RadixOp.EVICT, leaf)
        return pages

    def _queue_if_evictable(self, node: RadixNode) -> None:
        if not (node.queued or node.parent is None or node.locks or node.children):
            node.queued = True
            hits = node.hits if self._lfu else 0
            heapq.heappush(self._heap, (hits, node.last_access, node.node_id, node))

    def _entry(self, node: RadixNode) -> tuple[int, int, int, RadixNode]:
        return (node.hits if self._lfu else 0, node.last_access, node.node_id, node)

    def _new_node(
        self, first: bytes, key: bytes, pages: list[int], parent: RadixNode | None
    ) -> RadixNode:
        self._next_id += 1
        return RadixNode(self._next_id, first, key, pages, parent)

    def _tell(self, op: RadixOp, node: RadixNode) -> None:
        if self._listener is not None:
            self._listener(op, node)
