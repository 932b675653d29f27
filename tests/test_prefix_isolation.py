"""What one tenant has computed is never given to another, whatever hashes collide.

A namespace (tenant, salt, adapter) has a tree of its own, and keys are the token ids themselves.
A page's ids are looked up in a dictionary, so a hash decides where to look, but equality decides
what is found. Here every hash collides, and still nothing is confused.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.config import SchedulerConfig
from engine.core.radix_cache import RadixCache
from engine.core.radix_node import RadixNode
from engine.core.token_ids import TokenBuffer
from workbench.fuzz.explore import explore
from workbench.fuzz.fake_model import Ask
from workbench.fuzz.machines import FAULTS, MACHINES
from workbench.fuzz.rig import Rig


class Collider:
    """A key whose hash is that of every other key."""

    __slots__ = ("key",)

    def __init__(self, key: bytes) -> None:
        self.key = key

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Collider) and self.key == other.key


class CollidingDict(dict[Any, Any]):
    """A dictionary of bytes in which all keys fall together."""

    def __getitem__(self, key: bytes) -> Any:
        return super().__getitem__(Collider(key))

    def __setitem__(self, key: bytes, value: Any) -> None:
        super().__setitem__(Collider(key), value)

    def __delitem__(self, key: bytes) -> None:
        super().__delitem__(Collider(key))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and super().__contains__(Collider(key))

    def get(self, key: bytes, default: Any = None) -> Any:
        return super().get(Collider(key), default)

    def items(self) -> Any:
        return [(collider.key, value) for collider, value in super().items()]


@pytest.fixture
def colliding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node of every prefix cache looks its children up in a `CollidingDict`."""
    make = RadixNode.__init__

    def init(node: RadixNode, *arguments: Any) -> None:
        make(node, *arguments)
        node.children = CollidingDict()

    monkeypatch.setattr(RadixNode, "__init__", init)
    return


@pytest.mark.parametrize("name", ["cache", "scheduler", "cluster"])
def test_nothing_is_confused_when_all_hashes_collide(name: str, colliding: None) -> None:
    """The fuzzer's laws hold: every match is the longest cached prefix, every text its own."""
    for seed in range(60):
        assert explore(MACHINES[name], seed, FAULTS).failure is None


texts = st.lists(st.integers(0, 1), min_size=1, max_size=12)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 3), texts), max_size=12), st.sampled_from([1, 2, 4]))
def test_a_tenant_finds_what_it_has_cached_itself(
    stored: list[tuple[int, list[int]]], page_size: int
) -> None:
    """For all tenants and texts: the longest prefix of the tenant's own, in whole pages."""
    cache, pages = RadixCache(page_size), itertools.count()
    known: set[tuple[int, tuple[int, ...]]] = set()
    for tenant, text in stored:
        count = len(text) // page_size
        own = [next(pages) for _ in range(count)]
        cache.insert(cache.root(tenant), np.array(text[: count * page_size], np.int32), own)
        known |= {(tenant, tuple(text[: n * page_size])) for n in range(1, count + 1)}
    for tenant in range(4):
        for _, text in stored:
            ends = range(page_size, len(text) + 1, page_size)
            expected = max((n for n in ends if (tenant, tuple(text[:n])) in known), default=0)
            assert cache.peek(np.array(text, np.int32), tenant) == expected


def test_an_own_text_never_equals_a_page_of_ids() -> None:
    """Its name has nine bytes, and pages have a multiple of four."""
    for page_size in (1, 2, 3, 4, 16):
        cache = RadixCache(page_size)
        root = cache.root(0)
        node = cache.insert_own(root, [0])
        assert len(node.first) % 4 != 0
        ids = np.frombuffer(node.first[:8], np.int32)
        assert cache.peek(ids, 0) == 0
        assert not cache.continues(root, ids)


@pytest.mark.parametrize("wrong", [2**31, 2**32 + 5, -(2**31) - 1])
def test_ids_that_do_not_fit_are_no_alias_of_others(wrong: int) -> None:
    """An id of more than 32 bits is refused and not cut to one that somebody else may have used."""
    with pytest.raises(OverflowError):
        TokenBuffer([wrong])


def test_the_same_prompt_of_two_tenants_is_computed_twice() -> None:
    """Admission finds no hit across tenants, also for what a request of its own would find."""
    config = SchedulerConfig(num_pages=64, page_size=2, max_model_len=99)
    rig = Rig(0, config)
    prompt = tuple(range(20))
    for request_id, tenant in enumerate([0, 1, 0, 2]):
        rig.send(Ask(request_id, prompt, 2, 9, tenant=tenant))
        while rig.scheduler.has_work:
            rig.now += 1
            rig.plan()
            rig.commit()
    hits = [rig.requests[i].cached_tokens for i in range(4)]
    assert hits == [0, 0, 18, 0]
    rig.quiesce()
    rig.check_ends()
