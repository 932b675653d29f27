"""The page pool against a model made of sets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from core_harness import machine_settings
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.page_pool import Lease, OutOfPagesError, PagePool, page_runs


class PoolMachine(RuleBasedStateMachine):
    """Owners take and return pages; transfers lease them; the model keeps one set for each."""

    @initialize(num_pages=st.integers(1, 12), page_size=st.sampled_from([1, 2, 16]))
    def start(self, num_pages: int, page_size: int) -> None:
        self.pool = PagePool(num_pages, page_size)
        self.free = set(range(num_pages))
        self.owned: set[int] = set()
        self.leases: dict[int, tuple[int, ...]] = {}
        self.next_lease = 0

    @rule(count=st.integers(0, 6))
    def alloc(self, count: int) -> None:
        if count > len(self.free):
            with pytest.raises(OutOfPagesError):
                self.pool.alloc(count)
            return
        pages = self.pool.alloc(count)
        assert len(pages) == len(set(pages)) == count
        assert set(pages) <= self.free
        self.free -= set(pages)
        self.owned |= set(pages)

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        pages = data.draw(st.lists(st.sampled_from(sorted(self.owned)), unique=True))
        self.pool.free(pages)
        self.owned -= set(pages)
        self._settle()

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), deadline_ns=st.integers(0, 9))
    def lease(self, data: st.DataObject, deadline_ns: int) -> None:
        pages = data.draw(st.lists(st.sampled_from(sorted(self.owned)), unique=True))
        self.pool.lease(self.next_lease, pages, 5, deadline_ns)
        assert self.pool.leases()[self.next_lease] == Lease(tuple(pages), 5, deadline_ns)
        self.leases[self.next_lease] = tuple(pages)
        self.next_lease += 1

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def lease_again(self, data: st.DataObject) -> None:
        with pytest.raises(ValueError, match="in use"):
            self.pool.lease(data.draw(st.sampled_from(sorted(self.leases))), [], 0, 0)

    @rule(lease_id=st.integers(0, 20))
    def end_lease(self, lease_id: int) -> None:
        lease = self.pool.end_lease(lease_id)
        known = self.leases.pop(lease_id, None)
        assert (lease.pages if lease else None) == known
        self._settle()

    def _leased(self) -> set[int]:
        return {page for pages in self.leases.values() for page in pages}

    def _settle(self) -> None:
        """A page that nobody owns and nobody leases is free."""
        self.free |= set(range(self.pool.num_pages)) - self.owned - self._leased()

    @invariant()
    def equal_to_the_model(self) -> None:
        free = self.pool.free_list()
        assert len(free) == len(set(free)) == self.pool.free_pages
        assert set(free) == self.free
        assert self.pool.orphaned_pages == len(self._leased() - self.owned)
        assert self.pool.any_leased(sorted(self.owned)) == bool(self._leased() & self.owned)
        assert {i: lease.pages for i, lease in self.pool.leases().items()} == self.leases
        everything = len(self.free) + len(self.owned) + self.pool.orphaned_pages
        assert everything == self.pool.num_pages


class TestPool(PoolMachine.TestCase):
    """A pool equals its model after any sequence of calls."""

    settings = machine_settings(60)


def test_pages_are_reused_last_freed_first() -> None:
    """The page freed last is handed out first, in the order in which its run was freed."""
    pool = PagePool(6, 16)
    assert pool.alloc(3) == [0, 1, 2]
    pool.free([0, 1])
    assert pool.alloc(3) == [0, 1, 3]


def test_a_failed_allocation_takes_nothing() -> None:
    """Asking for one page too many changes nothing."""
    pool = PagePool(2, 16)
    with pytest.raises(OutOfPagesError, match="3 pages asked for, 2 of 2 free"):
        pool.alloc(3)
    assert sorted(pool.alloc(2)) == [0, 1]


def test_more_pages_than_exist_cannot_come_back() -> None:
    """A double free that overfills the pool is an error."""
    pool = PagePool(3, 16)
    pages = pool.alloc(1)
    pool.free(pages)
    with pytest.raises(ValueError, match="freed twice"):
        pool.free(pages)


@pytest.mark.parametrize(("num_pages", "page_size"), [(0, 16), (4, 0), (-1, 1)])
def test_a_pool_has_pages_and_pages_have_tokens(num_pages: int, page_size: int) -> None:
    """Empty pools and empty pages are refused."""
    with pytest.raises(ValueError, match="at least one"):
        PagePool(num_pages, page_size)


@given(st.lists(st.integers(0, 12), max_size=20))
def test_page_runs_are_the_list_again_and_cannot_be_joined(pages: list[int]) -> None:
    """Runs unfold to the very list, in order, and no two neighbours would make one run."""
    runs = page_runs(pages)
    assert [page for start, count in runs for page in range(start, start + count)] == pages
    assert all(a + n != b for (a, n), (b, _) in pairwise(runs))
