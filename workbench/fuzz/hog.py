"""Somebody else who takes KV pages: a pool that shrinks, and an allocator that fails.

Pages are taken from the free ones and from what the cache can give up, and held under a lease, as a
transfer holds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from workbench.fuzz.rig import Rig

_LEASE: Final = -1  # lease ids of transfers count from 0


class Hog:
    """Takes pages of one rig.

    Attributes:
        was_used: whether it ever took any.
    """

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._kv = rig.scheduler.kv
        self._ensure_free = self._kv.ensure_free
        self._left: int | None = None
        self._known = 0  # pages that whoever was refused just now knows to be there
        self._leases: list[int] = []
        self.was_used = False

    @property
    def holds(self) -> bool:
        """Whether it holds any page."""
        return bool(self._rig.shrunk)

    def take(self, count: int) -> None:
        """Take up to `count` pages."""
        kv = self._kv
        count = min(count, kv.available_pages)
        if count < 1:
            return
        self._ensure_free(count)
        held = self._rig.shrunk
        held += (pages := kv.pool.alloc(count))
        kv.pool.lease(_LEASE - len(held), pages, 0, 0)
        kv.pool.free(pages)
        self._leases.append(_LEASE - len(held))
        self.was_used = True

    def let_go(self) -> None:
        """Give everything back."""
        for lease in self._leases:
            self._kv.pool.end_lease(lease)
        self._leases.clear()
        self._rig.shrunk.clear()

    def fail_at(self, call: int) -> None:
        """In the plans to come, take everything before the `call`-th request for pages."""
        self._left = call

    @contextmanager
    def armed(self) -> Iterator[None]:
        """While a plan is made."""
        if self._left is None:
            yield
            return
        self._kv.ensure_free = self._failing  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self._kv.ensure_free

    def _failing(self, count: int) -> bool:
        if count != self._known and count > 0 and self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._left = None
                self.take(self._kv.available_pages)
        done = self._ensure_free(count)
        self._known = 0 if done else self._kv.available_pages
        return done
