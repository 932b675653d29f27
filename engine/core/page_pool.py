"""KV pages: who may have one, and which are free.

The pool hands out page numbers and takes them back in O(1) each. It does not know who owns a page;
`engine.core.invariants` recounts that. A page under a *lease* (a transfer still reads or writes it)
does not become free when its owner gives it back, only when the last lease on it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engine.core.errors import OutOfPagesError


class Lease(NamedTuple):
    """A hold on pages by a transfer.

    Attributes:
        pages: page numbers held.
        epoch: epoch of the request when the lease was taken.
        deadline_ns: after this time the holder is taken for dead.
    """

    pages: tuple[int, ...]
    epoch: int
    deadline_ns: int


class PagePool:
    """A fixed number of KV pages of `page_size` tokens, numbered from 0."""

    __slots__ = ("_free", "_lease_counts", "_leases", "_orphans", "num_pages", "page_size")

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"need at least one page and token: {num_pages=}, {page_size=}")
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._leases: dict[int, Lease] = {}
        self._lease_counts: dict[int, int] = {}
        self._orphans: set[int] = set()

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def orphaned_pages(self) -> int:
        """Pages given back by their owner but still under a lease."""
        return len(self._orphans)

    def alloc(self, count: int) -> list[int]:
        """Take `count` free pages.

        Raises:
            OutOfPagesError: fewer are free; nothing is taken.
        """
        free = self._free
        if count > len(free):
            raise OutOfPagesError(f"{count} pages asked for, {len(free)} of {self.num_pages} free")
        if count == 1:
            return [free.pop()]
        if count == 0:
            return []
        pages = free[: -count - 1 : -1]
        del free[-count:]
        return pages

    def free(self, pages: Sequence[int]) -> None:
        """Give pages back; those under a lease become free when it ends.

        Raises:
            ValueError: more pages came back than exist, so something was freed twice.
        """
        if self._lease_counts:
            counts = self._lease_counts
            self._orphans.update(page for page in pages if page in counts)
            pages = [page for page in pages if page not in counts]
        self._free.extend(reversed(pages))
        if len(self._free) + len(self._orphans) > self.num_pages:
            raise ValueError("pages freed twice: the pool holds more free pages than it has")

    def lease(self, lease_id: int, pages: Sequence[int], epoch: int, deadline_ns: int) -> None:
        """Hold owned pages for a transfer.

        Raises:
            ValueError: the lease id is in use.
        """
        if lease_id in self._leases:
            raise ValueError(f"lease {lease_id} is in use")
        self._leases[lease_id] = Lease(tuple(pages), epoch, deadline_ns)
        for page in pages:
            self._lease_counts[page] = self._lease_counts.get(page, 0) + 1

    def end_lease(self, lease_id: int) -> Lease | None:
        """Drop a lease; pages that only it still held become free. Unknown ids are ignored."""
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            return None
        for page in lease.pages:
            left = self._lease_counts[page] - 1
            if left:
                self._lease_counts[page] = left
                continue
            del self._lease_counts[page]
            if page in self._orphans:
                self._orphans.discard(page)
                self._free.append(page)
        return lease

    def any_leased(self, pages: Sequence[int]) -> bool:
        """Whether a transfer holds one of these pages."""
        counts = self._lease_counts
        return bool(counts) and any(page in counts for page in pages)

    def leases(self) -> dict[int, Lease]:
        """All leases by id (a copy)."""
        return dict(self._leases)

    def free_list(self) -> list[int]:
        """The free pages in the order in which they will be reused, last first (a copy)."""
        return list(self._free)


def page_runs(pages: Sequence[int]) -> list[tuple[int, int]]:
    """Contiguous ascending runs of a page list as (first page, count), in list order."""
    runs: list[tuple[int, int]] = []
    start = length = 0
    for page in pages:
        if length and page == start + length:
            length += 1
        else:
            if length:
                runs.append((start, length))
            start, length = page, 1
    if length:
        runs.append((start, length))
    return runs
