"""Random settings and requests that bring a scheduler to its limits: few pages, few letters."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any, Final

from engine.core.config import SchedulerConfig
from engine.core.enums import RejectReason
from engine.core.request import KVHandoff
from workbench.fuzz.fake_model import Ask

TICK_NS: Final = 1_000_000  # what passes from one operation to the next
TIMEOUT_NS: Final = 60 * TICK_NS
MOST_SLOTS: Final = 1 << 20  # KV slots of a case
_NO_LIMIT: Final = 10**9


def random_config(rng: random.Random, **fixed: Any) -> SchedulerConfig:
    """Settings of a tiny replica, where memory is short and limits are near."""
    size = rng.choice([1, 2, 4, 16, 64])
    running = rng.randint(1, 6)
    settled: dict[str, Any] = dict(
        num_pages=rng.randint(6, 40) if size < 16 else rng.randint(3, 8),
        page_size=size,
        max_model_len=rng.choice([60, 10_000, 10_000]),
        max_running_requests=running,
        max_num_batched_tokens=rng.randint(8, 48),
        max_prefill_tokens=rng.choice([None, None, 3, 12]),
        policy=rng.choice(["fcfs", "lpm", "priority"]),
        mode=rng.choice(["mixed", "prefill_first"]),
        admission=rng.choice(["estimate", "estimate", "reserve"]),
        prefix_cache=rng.random() < 0.7,
        eviction=rng.choice(["lru", "lfu"]),
        schedule_conservativeness=rng.choice([0.01, 0.01, 0.3, 1.0]),
        chunked_prefill=rng.random() < 0.7,
        num_speculative_tokens=rng.choice([0, 0, 0, 1, 3]),
        max_plans_in_flight=rng.randint(1, 4),
        cuda_graph_batch_sizes=rng.choice([(), (1, 2, 4)]),
        transfer_timeout_ns=TIMEOUT_NS,
    )
    settled |= fixed
    rows = settled["max_running_requests"] * (1 + settled["num_speculative_tokens"])
    settled["max_num_batched_tokens"] = max(settled["max_num_batched_tokens"], rows)
    return SchedulerConfig(**settled)


def random_asks(
    rng: random.Random,
    config: SchedulerConfig,
    count: int,
    handoffs: bool = False,
    squeeze: bool = False,
    alike: bool = False,
) -> list[Ask]:
    """Requests whose prompts share prefixes and part near page edges, some of which never fit.

    With `squeeze` all answers are long, so that pages run out while they grow.
    """
    slots, size = config.num_pages * config.page_size, config.page_size
    longest, most = min(slots, 3 * size + 12), min(slots, 60)
    spread = rng.choice([0, 0, 2])
    talkative = squeeze or (rng.random() < 0.4 and not alike)  # short prompts, long answers
    herd = rng.random() < 0.3 or alike  # all ask nearly the same, and part at a page's edge
    stems = [[rng.randint(0, 1) for _ in range(longest)] for _ in range(1 if herd else 3)]
    asks = []
    for request_id in range(count):
        length = rng.choice([rng.randint(1, longest), rng.randint(1, min(longest, 8))])
        if talkative:
            length = rng.randint(1, min(longest, 5))
        elif herd or rng.random() < 0.1:
            edge = rng.randint(1, max(1, longest // size)) * size + rng.randint(-1, 1)
            length = min(max(1, edge), longest)
        prompt = list(rng.choice(stems)[:length])
        tail = rng.randint(0, min(4, length - 1))
        prompt[length - tail :] = [rng.randint(0, 1) for _ in range(tail)]
        handoff = rng.choice(list(KVHandoff)) if handoffs else KVHandoff.NONE
        received = handoff == KVHandoff.RECEIVE
        asks.append(
            Ask(
                request_id,
                tuple(prompt),
                max_tokens=rng.randint(most // 2, max(most // 2, most - squeeze * length))
                if talkative
                else _max_tokens(rng, config, length, most),
                stop_after=rng.choice(
                    [rng.randint(2, 60), _NO_LIMIT if squeeze else rng.randint(received + 1, 4)]
                ),
                priority=rng.randint(0, spread),
                tenant=rng.choice([0, 0, 1]),
                handoff=handoff,
            )
        )
    return asks


def _max_tokens(rng: random.Random, config: SchedulerConfig, prompt_tokens: int, most: int) -> int:
    """Small, any, or such that prompt and answer just fit, or just do not."""
    slots = min(config.num_pages * config.page_size, config.max_model_len, 200)
    edge = max(1, slots - prompt_tokens + rng.randint(0, 2))
    return rng.choice([1, 2, rng.randint(1, 16), rng.randint(1, most), edge])


def squeezed(rng: random.Random) -> dict[str, Any]:
    """Settings under which memory runs out."""
    return dict(
        page_size=rng.choice([1, 1, 2, 4]),
        num_pages=rng.randint(8, 20),
        max_running_requests=rng.randint(3, 6),
        max_model_len=10_000,
        admission="estimate",
        schedule_conservativeness=0.01,
    )


def unseen(rng: random.Random) -> dict[str, Any]:
    """Settings under which prompts take many steps, and share them before their first token."""
    return dict(
        page_size=rng.choice([1, 1, 2, 4]),
        num_pages=rng.randint(16, 40),
        max_model_len=10_000,
        max_prefill_tokens=rng.choice([2, 3, 5]),
        prefix_cache=True,
        chunked_prefill=True,
    )


def why_never(ask: Ask, config: SchedulerConfig) -> RejectReason:
    """The reason to reject a request, from the definitions of the limits."""
    total = len(ask.prompt) + ask.max_tokens
    if total > config.max_model_len:
        return RejectReason.EXCEEDS_CONTEXT
    if total - 1 > config.num_pages * config.page_size:
        return RejectReason.EXCEEDS_KV_POOL
    budget = min(config.max_num_batched_tokens, config.max_prefill_tokens or _NO_LIMIT)
    if not config.chunked_prefill and len(ask.prompt) > budget:
        return RejectReason.EXCEEDS_STEP_BUDGET
    return RejectReason.NONE


def fits(asks: Iterable[Ask], config: SchedulerConfig) -> list[Ask]:
    """Those requests that are not rejected."""
    return [ask for ask in asks if not why_never(ask, config)]


def smaller_asks(ask: Ask) -> Iterator[Ask]:
    """Shorter and plainer variants of a request."""
    half = len(ask.prompt) // 2
    if half:
        yield replace(ask, prompt=ask.prompt[:half])
        yield replace(ask, prompt=ask.prompt[:-1])
    if ask.max_tokens > 1:
        yield replace(ask, max_tokens=ask.max_tokens // 2)
        yield replace(ask, max_tokens=ask.max_tokens - 1)
    if any(ask.prompt):
        yield replace(ask, prompt=(0,) * len(ask.prompt))
    if ask.priority:
        yield replace(ask, priority=0)
    if ask.tenant:
        yield replace(ask, tenant=0)
    if ask.stop_after != _NO_LIMIT:
        yield replace(ask, stop_after=_NO_LIMIT)


def ask_to_json(ask: Ask) -> dict[str, Any]:
    """An ask as plain values."""
    return asdict(ask) | {"prompt": list(ask.prompt), "handoff": int(ask.handoff)}


def ask_from_json(values: dict[str, Any]) -> Ask:
    """The inverse of `ask_to_json`."""
    kept = {"prompt": tuple(values["prompt"]), "handoff": KVHandoff(values["handoff"])}
    return Ask(**(values | kept))


def config_to_json(config: SchedulerConfig) -> dict[str, Any]:
    """Settings as plain values."""
    return asdict(config) | {"cuda_graph_batch_sizes": list(config.cuda_graph_batch_sizes)}


def config_from_json(values: dict[str, Any]) -> SchedulerConfig:
    """The inverse of `config_to_json`.

    Raises:
        ValueError: the memory is far larger than that of any case.
    """
    if values["num_pages"] * values["page_size"] > MOST_SLOTS:
        raise ValueError(f"num_pages * page_size must be at most {MOST_SLOTS:,}")
    sizes = tuple(values["cuda_graph_batch_sizes"])
    return SchedulerConfig(**(values | {"cuda_graph_batch_sizes": sizes}))
