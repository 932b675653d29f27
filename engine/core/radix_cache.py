"""The prefix cache: a radix tree that also keeps texts without ids, and takes back what failed.

Matching, inserting, locks and eviction are the tree's (`engine.core.radix_tree`).

A text whose ids nobody knows can be cached, too, for its owner alone (`insert_own`). It has a path
of its own below the root: nodes without ids, the first of them filed under a name that no page of
ids can equal. Such nodes are used, locked, grown and evicted like any others.

KV is shared before anybody has seen a token of it: half of a prompt whose client gave up. Pages are
*proven* once a token came of a text that they begin. If no number comes of a text instead, its
pages that are not proven are *withdrawn*: filed under a new name that nobody is told, so that they
are matched no more, by the owner of an own text neither, while those who hold them keep them.
"""

from __future__ import annotations

import heapq

from engine.core.enums import RadixOp
from engine.core.radix_node import NAME_BYTES, PrefixMatch, RadixNode
from engine.core.radix_tree import RadixTree


class RadixCache(RadixTree):
    """A `RadixTree` with own texts, and with pages that are proven or withdrawn."""

    def match_own(self, name: bytes, tokens: int, namespace: int = 0) -> PrefixMatch:
        """`match` for the first `tokens` tokens of an own text; b"" names one not cached yet."""
        node, pages = self.root(namespace), list[int]()
        self._clock += 1
        if name:
            left, child = tokens // self.page_size, node.children.get(name)
            while child is not None and left:
                if len(child.pages) > left:
                    child = self._split(child, left)
                self._use(child)
                child.hits += 1
                pages += child.pages
                left -= len(child.pages)
                node, child = child, child.children.get(b"")
        self.lookups += 1
        self.lookup_tokens += tokens
        self.hit_tokens += len(pages) * self.page_size
        return PrefixMatch(node, pages, tokens)

    def miss_own(self, tokens: int) -> None:
        """What `match_own` counts for an own text that is not cached yet, without its result."""
        self.lookups += 1
        self.lookup_tokens += tokens

    def peek_own(self, name: bytes, tokens: int, namespace: int = 0) -> int:
        """`peek` for the first `tokens` tokens of an own text."""
        root, count = self._roots.get(namespace), 0
        node = root.children.get(name) if root is not None and name else None
        while node is not None:
            count += len(node.pages)
            node = node.children.get(b"")
        return min(count, tokens // self.page_size) * self.page_size

    def insert_own(self, node: RadixNode, pages: list[int]) -> RadixNode:
        """`insert_locked` for `pages` of a text without ids, which only its owner can match.

        Args:
            node: the locked end of what the cache holds of this text. At the root a new text
                begins: its name is `first` of the returned node.
            pages: at least one; the tree owns them from now on.

        Raises:
            ValueError: `node` is not locked.
        """
        parent = node.parent
        grows = parent is not None and self._can_grow(node)
        self._clock += 1
        self.version += 1
        self.protected_pages += len(pages)
        if grows:
            node.pages += pages
            node.last_access = self._clock
            if self._listener is not None:
                self._listener(RadixOp.INSERT, node)
            return node
        self._next_id += 1
        first = b"" if parent is not None else self._next_id.to_bytes(NAME_BYTES, "little")
        leaf = RadixNode(self._next_id, first, b"", pages, node)
        leaf.last_access, leaf.locks = self._clock, 1
        node.children[first] = leaf
        if self._listener is not None:
            self._tell(RadixOp.INSERT, leaf)
            self._tell(RadixOp.LOCK, leaf)
            self._tell(RadixOp.UNLOCK, node)
        return leaf

    def prove(self, node: RadixNode) -> None:
        """A token came of a text that begins with the prefix of `node`: its KV holds numbers."""
        step = node
        while (parent := step.parent) is not None and step.proven < len(step.pages):
            step.proven = len(step.pages)
            step = parent

    def withdraw(self, node: RadixNode) -> None:
        """No number came of a text that begins with the prefix of `node`.

        From its first page on that is not proven nobody matches it any more, nor what follows it,
        by ids or by the name of an own text. Locks and pages stay as they are; what is withdrawn is
        evicted before anything else.
        """
        step, top = node, node
        while (parent := step.parent) is not None and step.proven < len(step.pages):
            step, top = parent, step
        if step is node or top.withdrawn:
            return  # all proven, or nobody can match it as it is
        if top.proven:
            step = self._split(top, top.proven)
        del step.children[top.first]
        self._next_id += 1
        top.first = self._next_id.to_bytes(NAME_BYTES, "little")
        step.children[top.first] = top
        top.withdrawn = True
        self.version += 1
        self._devalue(top)
        self._tell(RadixOp.WITHDRAW, top)

    def _devalue(self, top: RadixNode) -> None:
        """Let a node and what is below it be the first to be evicted."""
        stack = [top]
        while stack:
            node = stack.pop()
            node.hits = node.last_access = 0
            if node.queued:  # the heap looks at what became less valuable again, not by itself
                heapq.heappush(self._heap, self._entry(node))
            stack.extend(node.children.values())
