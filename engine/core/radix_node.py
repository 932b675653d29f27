"""A node of the prefix cache's radix tree, and what its calls return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from engine.core.enums import RadixOp

NAME_BYTES: Final = 9  # not a whole number of int32 ids, so no page of ids equals a name

RadixListener = Callable[[RadixOp, "RadixNode"], None]


class RadixNode:
    """One edge of the tree: `key` (whole pages of ids) and the pages that hold its KV.

    `key` is empty in a root and in own texts; `first` is what the parent files the node under: the
    first page of `key`, or a name (of an own text, or of what is withdrawn), or nothing where an
    own text goes on. The first `proven` pages have given a number; if any have, then so have all
    of the parent's. To a node that is `withdrawn`, and to all below it, its text no longer leads:
    its name is known to nobody.
    """

    __slots__ = (
        "children", "first", "hits", "key", "last_access", "locks", "node_id", "pages", "parent",
        "proven", "queued", "withdrawn",
    )  # fmt: skip

    def __init__(
        self, node_id: int, first: bytes, key: bytes, pages: list[int], parent: RadixNode | None
    ) -> None:
        self.node_id = node_id
        self.first = first
        self.key = key
        self.pages = pages
        self.parent = parent
        self.children: dict[bytes, RadixNode] = {}
        self.locks = 0
        self.hits = 0
        self.last_access = 0
        self.proven = 0
        self.queued = False  # has an entry in the eviction heap
        self.withdrawn = False


class PrefixMatch(NamedTuple):
    """The longest cached prefix: its deepest node and its pages, root to leaf.

    `lookup_tokens` is how many tokens it was looked up for.
    """

    node: RadixNode
    pages: list[int]
    lookup_tokens: int


class InsertResult(NamedTuple):
    """Where an insertion ended, and how many of the offered pages were there already."""

    node: RadixNode
    duplicate_pages: int
