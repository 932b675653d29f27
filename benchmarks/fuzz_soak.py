"""Simulates millions of requests with invariants that cost O(1), checked every 50 ms of it.

    python benchmarks/fuzz_soak.py --requests 10_000_000

Each stretch of requests has settings of its own, drawn from its seed: replicas, router, policy,
page size, prefix sharing, aborts. After each stretch everything must be at rest and is recounted
from scratch. The result goes to benchmarks/results/fuzz_soak.json, a line per stretch; a further
call goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.compiled import active_build
from engine.core.config import SchedulerConfig
from engine.core.events import Detail, EventLog, Segment
from engine.core.invariants import check
from engine.core.workload import NEVER, PromptSegments, Workload
from simulator.replica import Replica
from simulator.router import RouterConfig
from simulator.world import Outcome, ReplicaConfig, World
from workbench.fuzz.hashed_costs import HashedCosts
from workbench.record.provenance import source_commit

RESULT = Path(__file__).parent / "results" / "fuzz_soak.json"
STRETCH = 100_000
EVERY_NS = 50_000_000  # of virtual time


def workload(seed: int, n: int, rate: float, aborts: bool, with_ids: bool) -> Workload:
    """Short requests that share system prompts and come in bursts."""
    rng = np.random.default_rng(seed)
    arrival_ns = np.cumsum(rng.exponential(1e9 / rate, n)).astype(np.int64)
    prompt = rng.geometric(1 / 48, n).clip(1, 400).astype(np.int32)
    output = rng.geometric(1 / 12, n).clip(1, 100).astype(np.int32)
    limit = (output + rng.integers(0, 2, n) * 20).astype(np.int32)
    keys, lengths = np.empty(2 * n, np.int64), np.empty(2 * n, np.int32)
    keys[0::2], keys[1::2] = rng.integers(0, 8, n), 1000 + np.arange(n)
    lengths[0::2] = np.minimum(prompt, 32)
    lengths[1::2] = prompt - lengths[0::2]
    segments = PromptSegments(np.arange(n + 1) * 2, keys, lengths, 10**7 + np.arange(n), 128_256)
    asked = Workload.from_lengths(arrival_ns, prompt, output, limit, segments if with_ids else None)
    patience = np.where(rng.random(n) < 0.1 * aborts, rng.integers(0, 10**9, n), NEVER)
    return replace(asked, abort_after_ns=patience, tenant=rng.integers(0, 3, n).astype(np.int32))


def settings(rng: random.Random) -> SchedulerConfig:
    """A small replica, so that memory is short."""
    page_size = rng.choice([1, 16, 16, 64])
    return SchedulerConfig(
        num_pages=rng.choice([2000, 4000, 8000]) // page_size,
        page_size=page_size,
        max_model_len=4096,
        max_running_requests=rng.choice([16, 64, 128]),
        max_num_batched_tokens=rng.choice([256, 1024]),
        policy=rng.choice(["fcfs", "fcfs", "lpm", "priority"]),
        mode=rng.choice(["mixed", "prefill_first"]),
        admission=rng.choice(["estimate", "reserve"]),
        schedule_conservativeness=rng.choice([0.05, 1.0]),
        prefix_cache=rng.random() < 0.7,
        eviction=rng.choice(["lru", "lfu"]),
        max_plans_in_flight=rng.choice([1, 2, 2, 3]),
    )


def cheap(replica: Replica) -> None:
    """What must hold at any time and is known without looking at any request.

    Raises:
        AssertionError: it does not.
    """
    scheduler = replica.scheduler
    kv, book, config = scheduler.kv, scheduler.book, scheduler.config
    cached = kv.cache.evictable_pages + kv.cache.protected_pages if kv.cache else 0
    if not 0 <= kv.pool.free_pages + cached <= config.num_pages:
        raise AssertionError(f"{kv.pool.free_pages} free and {cached} cached pages")
    if not 0 <= book.running <= config.max_running_requests:
        raise AssertionError(f"{book.running} running requests")
    if book.running + len(book.waiting) > len(book.requests):
        raise AssertionError("more requests in places than are alive")
    if len(scheduler.in_flight) > config.max_plans_in_flight or kv.held_pages < 0:
        raise AssertionError("plans in flight, held pages")
    if book.promised_pages < 0 or (book.running and not book.promised_pages):
        raise AssertionError(f"{book.promised_pages} promised pages")


def stretch(seed: int, n: int) -> dict[str, Any]:
    """Simulate `n` requests; what was done."""
    rng = random.Random(seed)  # noqa: S311 - a seed, no secret
    count = rng.randint(1, 3)
    configs = [settings(rng) for _ in range(count)]
    replicas = [ReplicaConfig(c, HashedCosts(seed + i)) for i, c in enumerate(configs)]
    policy = rng.choice(["round_robin", "least_loaded", "cache_aware"])
    aborts, with_ids = rng.random() < 0.5, rng.random() < 0.7
    rate = count * rng.choice([100, 400, 800])
    ended = checks = 0

    def count_ends(segment: Segment) -> None:
        nonlocal ended
        if "requests" in segment:
            ended += len(segment["requests"]["request_id"])

    log = EventLog(Detail.NONE, count_ends, 1 << 14)
    world = World(
        workload(seed, n, rate, aborts, with_ids), replicas, RouterConfig(policy), log=log
    )

    def look() -> None:
        nonlocal checks
        checks += 1
        for replica in world.replicas:
            cheap(replica)
        alive = sum(replica.live_requests for replica in world.replicas)
        progress = world.progress()
        if progress.sent - progress.ended != alive:
            raise AssertionError(f"{progress} and {alive} alive")

    started_s, time_ns = time.process_time(), 0
    while world.progress().ended < n:
        time_ns += EVERY_NS
        world.run_before(time_ns)
        look()
    result = world.run()
    log.flush()
    if result.outcome is not Outcome.COMPLETE or ended != n:
        raise AssertionError(f"{ended} of {n} requests have ended")
    for replica in world.replicas:
        check(replica.scheduler)
        kv = replica.scheduler.kv
        if kv.pool.free_pages + kv.cached_pages != replica.scheduler.config.num_pages:
            raise AssertionError("pages are held by nobody")
    return dict(
        seed=seed, requests=n, steps=result.steps, checks=checks, replicas=count,
        simulated_s=round(result.end_ns / 1e9), cpu_s=round(time.process_time() - started_s, 2),
    )  # fmt: skip


def run(requests: int, path: Path) -> None:
    """Stretches until there are so many requests in all."""
    commit = source_commit()  # of the sources that are loaded, whatever is checked out later
    rows = json.loads(path.read_text())["stretches"] if path.exists() else []
    while (done := sum(row["requests"] for row in rows)) < requests:
        row = stretch(len(rows), STRETCH)
        row["commit"], row["compiled"] = commit, active_build() is not None
        rows.append(row)
        cpu_s = sum(r["cpu_s"] for r in rows)
        totals = dict(
            requests=done + STRETCH, steps=sum(r["steps"] for r in rows), cpu_s=round(cpu_s, 1),
            checks=sum(r["checks"] for r in rows), violations=0,
            requests_per_core_hour=round((done + STRETCH) / cpu_s * 3600),
            python=platform.python_version(),
        )  # fmt: skip
        lines = ",\n".join("  " + json.dumps(r) for r in rows)
        head = json.dumps({"totals": totals}, indent=1).removesuffix("\n}")
        path.write_text(f'{head},\n "stretches": [\n{lines}\n ]\n}}\n', encoding="utf-8")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000_000)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    run(options.requests, options.result)
