"""Settings and texts of a prefix cache under test, as drawn, written, read and made smaller."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from engine.core.radix_tree import Eviction
from workbench.fuzz.machine import Operation, swarm
from workbench.fuzz.tiny import MOST_SLOTS

FAULTS: Final = frozenset({"flush", "own", "forget", "burst", "nan"})


@dataclass(frozen=True)
class Setup:
    """Settings of a run.

    Attributes:
        texts: token ids of the texts that are cached, any prefix of them.
        namespaces: how many tenants there are.
        rates: of faults.
        every: full recounts are made after each n-th operation.
    """

    num_pages: int
    page_size: int
    eviction: Eviction
    texts: tuple[tuple[int, ...], ...]
    namespaces: int
    rates: dict[str, float]
    every: int


def draw_setup(rng: random.Random, faults: frozenset[str]) -> Setup:
    """Few pages, two letters, texts that part at page edges and beside them."""
    size = rng.choice([1, 1, 2, 2, 4, 16, 64])
    longest = size * rng.randint(2, 6) + rng.randint(0, size)
    stem = [rng.randint(0, 1) for _ in range(longest)]
    texts = []
    for _ in range(rng.randint(2, 6)):
        text = list(stem)
        edge = rng.randint(0, longest // size) * size + rng.choice([-1, 0, 0, 1])
        text[max(0, edge) :] = [rng.randint(0, 1) for _ in text[max(0, edge) :]]
        texts.append(tuple(text))
    eviction: Eviction = rng.choice(["lru", "lfu"])
    return Setup(
        rng.randint(3, 24), size, eviction, tuple(texts), rng.choice([1, 1, 2, 3]),
        swarm(rng, faults), rng.choice([1, 4, 16]),
    )  # fmt: skip


def encode(setup: Setup) -> dict[str, Any]:
    """As plain values."""
    return {
        "num_pages": setup.num_pages, "page_size": setup.page_size, "eviction": setup.eviction,
        "texts": [list(text) for text in setup.texts], "namespaces": setup.namespaces,
        "rates": setup.rates, "every": setup.every,
    }  # fmt: skip


def decode(values: dict[str, Any]) -> Setup:
    """The inverse of `encode`.

    Raises:
        ValueError: the memory is far larger than that of any case.
    """
    if values["num_pages"] * values["page_size"] > MOST_SLOTS:
        raise ValueError(f"num_pages * page_size must be at most {MOST_SLOTS:,}")
    texts = tuple(tuple(text) for text in values["texts"])
    return Setup(**(values | {"texts": texts}))


def needed(setup: Setup, operations: list[Operation]) -> Setup:
    """The same, recounting always; operations name texts by number, so all stay."""
    del operations
    return replace(setup, every=1)


def simpler(setup: Setup) -> Iterator[Setup]:
    """The same with less memory or text, or a plainer setting."""
    if setup.num_pages > 1:
        yield replace(setup, num_pages=setup.num_pages // 2)
        yield replace(setup, num_pages=setup.num_pages - 1)
    if setup.eviction != "lru":
        yield replace(setup, eviction="lru")
    if setup.namespaces > 1:
        yield replace(setup, namespaces=1)
    for at, text in enumerate(setup.texts):
        if len(text) > setup.page_size:
            shorter = text[: -setup.page_size]
            yield replace(setup, texts=(*setup.texts[:at], shorter, *setup.texts[at + 1 :]))
