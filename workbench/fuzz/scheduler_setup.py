"""Settings and requests of a scheduler under test, as drawn, written, read and made smaller."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from engine.core.config import SchedulerConfig
from workbench.fuzz.fake_model import Ask
from workbench.fuzz.machine import Operation, swarm
from workbench.fuzz.tiny import (
    ask_from_json,
    ask_to_json,
    config_from_json,
    config_to_json,
    random_asks,
    random_config,
    smaller_asks,
    squeezed,
    unseen,
)

FAULTS: Final = frozenset({
    "abort", "half", "storm", "fail", "nan", "wrong_order", "misfit", "twice", "starve", "shrink",
    "flush", "reconfigure", "handoff", "transfer", "leap",
})  # fmt: skip
IN_RUN: Final = FAULTS - {"nan", "handoff", "transfer"}  # those that are operations


@dataclass(frozen=True)
class Setup:
    """Settings of a run.

    Attributes:
        config: of the scheduler.
        asks: what may be sent.
        rates: fault -> how often per operation.
        every: full recounts are made after each n-th operation.
        recorded: keep events and journal, and check them at the end.
        pace: how eager the driver is to commit; 0: only when it must.
    """

    config: SchedulerConfig
    asks: tuple[Ask, ...]
    rates: dict[str, float]
    every: int
    recorded: bool
    pace: float


def draw_setup(rng: random.Random, faults: frozenset[str]) -> Setup:
    """Tiny resources, and about half of the faults."""
    rates = swarm(rng, faults)
    handoffs = "handoff" in rates
    fixed: dict[str, Any] = {} if handoffs else {"transfer_timeout_ns": _NEVER_NS}
    squeeze = rng.random() < 0.4
    doubtful = not squeeze and {"nan", "half"} <= rates.keys()
    if squeeze:
        fixed |= squeezed(rng)
        rates.pop("half", None)  # memory runs out of what goes on
    elif doubtful:
        fixed |= unseen(rng)
    config = random_config(rng, **fixed)
    if handoffs:
        rates.pop("starve", None)  # a receive takes the pages that it was promised in one breath
    count = rng.choice([3, 6, 12, 24])
    asks = random_asks(rng, config, count, handoffs, squeeze, doubtful)
    recorded = rng.random() < 1 / 16
    every = rng.choice([1, 4, 8, 16])
    return Setup(config, tuple(asks), rates, every, recorded, rng.choice([0.05, 0.3, 0.6]))


_NEVER_NS: Final = 10**18


def encode(setup: Setup) -> dict[str, Any]:
    """As plain values."""
    return {
        "config": config_to_json(setup.config),
        "asks": [ask_to_json(ask) for ask in setup.asks],
        "rates": setup.rates,
        "every": setup.every,
        "recorded": setup.recorded,
        "pace": setup.pace,
    }


def decode(values: dict[str, Any]) -> Setup:
    """The inverse of `encode`."""
    return Setup(
        config_from_json(values["config"]),
        tuple(ask_from_json(ask) for ask in values["asks"]),
        values["rates"],
        values["every"],
        values["recorded"],
        values["pace"],
    )


def needed(setup: Setup, operations: list[Operation]) -> Setup:
    """The settings without requests that no operation sends, recounting always."""
    sent = {operation[1] for operation in operations if operation[0] == "send"}
    asks = tuple(ask for ask in setup.asks if ask.request_id in sent)
    return replace(setup, asks=asks, every=1)


def simpler(setup: Setup) -> Iterator[Setup]:
    """The same with one request smaller, or one setting at its plainest."""
    for at, ask in enumerate(setup.asks):
        for smaller in smaller_asks(ask):
            yield replace(setup, asks=(*setup.asks[:at], smaller, *setup.asks[at + 1 :]))
    for name, plain in _PLAIN.items():
        if getattr(setup.config, name) != plain:
            yield replace(setup, config=replace(setup.config, **{name: plain}))
    if setup.recorded:
        yield replace(setup, recorded=False)


_PLAIN: Final[dict[str, Any]] = {
    "policy": "fcfs", "mode": "mixed", "admission": "estimate", "eviction": "lru",
    "chunked_prefill": True, "max_prefill_tokens": None, "cuda_graph_batch_sizes": (),
    "max_plans_in_flight": 1, "num_speculative_tokens": 0, "prefix_cache": False,
    "max_model_len": 10_000,
}  # fmt: skip
