"""Random settings and requests that bring a scheduler to its limits."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from core_fakes import Ask

from engine.core.config import SchedulerConfig
from engine.core.enums import RejectReason
from engine.core.request import KVHandoff

TIMEOUT_NS = 60


def random_config(rng: random.Random, **fixed: Any) -> SchedulerConfig:
    """Settings of a tiny replica, where memory is short and limits are near."""
    size = rng.choice([1, 2, 4, 16, 64])
    running = rng.randint(1, 6)
    settled = dict(
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
    rng: random.Random, config: SchedulerConfig, count: int, handoffs: bool = False
) -> list[Ask]:
    """Requests whose prompts share prefixes, some of which never fit."""
    slots = config.num_pages * config.page_size
    longest, most = min(slots, 3 * config.page_size + 12), min(slots, 60)
    spread = rng.choice([0, 0, 2])
    talkative = rng.random() < 0.4  # short prompts, long answers: pages run out while decoding
    stems = [[rng.randint(0, 1) for _ in range(longest)] for _ in range(3)]
    asks = []
    for request_id in range(count):
        length = rng.choice([rng.randint(1, longest), rng.randint(1, min(longest, 8))])
        if talkative:
            length = rng.randint(1, min(longest, 5))
        prompt = list(rng.choice(stems)[:length])
        tail = rng.randint(0, min(4, length - 1))
        prompt[length - tail :] = [rng.randint(0, 1) for _ in range(tail)]
        handoff = rng.choice(list(KVHandoff)) if handoffs else KVHandoff.NONE
        received = handoff == KVHandoff.RECEIVE
        asks.append(
            Ask(
                request_id,
                tuple(prompt),
                max_tokens=rng.randint(most // 2, most)
                if talkative
                else rng.choice([1, 2, rng.randint(1, 16), rng.randint(1, most)]),
                stop_after=rng.choice([rng.randint(2, 60), rng.randint(received + 1, 4)]),
                priority=rng.randint(0, spread),
                tenant=rng.choice([0, 0, 1]),
                handoff=handoff,
            )
        )
    return asks


def why_never(ask: Ask, config: SchedulerConfig) -> RejectReason:
    """The reason to reject a request, from the definitions of the limits."""
    total = len(ask.prompt) + ask.max_tokens
    if total > config.max_model_len:
        return RejectReason.EXCEEDS_CONTEXT
    if total - 1 > config.num_pages * config.page_size:
        return RejectReason.EXCEEDS_KV_POOL
    budget = min(config.max_num_batched_tokens, config.max_prefill_tokens or 10**9)
    if not config.chunked_prefill and len(ask.prompt) > budget:
        return RejectReason.EXCEEDS_STEP_BUDGET
    return RejectReason.NONE


def fits(asks: Iterable[Ask], config: SchedulerConfig) -> list[Ask]:
    """Those requests that are not rejected."""
    return [ask for ask in asks if not why_never(ask, config)]
