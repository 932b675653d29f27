"""A digest of random simulations that touch every part of the core; see test_native.py."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from engine.core.config import SchedulerConfig
from engine.core.events import Detail, EventLog
from engine.core.hardware_spec import load_hardware_spec
from engine.core.model_spec import load_model_spec
from engine.core.workload import PromptSegments, Workload
from simulator.roofline import RooflineCostModel
from simulator.router import RouterConfig
from simulator.world import ReplicaConfig, World

RUNS = 40


def fingerprint() -> str:
    """SHA-256 over all tables and journals of `RUNS` seeded simulations."""
    digest = hashlib.sha256()
    model = RooflineCostModel(load_model_spec("llama-3.1-8b"), load_hardware_spec("h200"))
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        replicas = [ReplicaConfig(_config(rng), model)] * int(rng.integers(1, 4))
        policy = ("round_robin", "least_loaded", "cache_aware")[seed % 3]
        world = World(
            _workload(rng),
            replicas,
            RouterConfig(policy, 2),
            max_concurrency=None if seed % 4 else 5,
            log=EventLog(Detail.PAGES),
            journal=True,
        )
        result = world.run()
        for columns in result.tables.values():
            for column in columns.values():
                digest.update(np.ascontiguousarray(column).tobytes())
        for journal in result.journals:
            digest.update(journal.to_array().tobytes())
    return digest.hexdigest()


def _config(rng: np.random.Generator) -> SchedulerConfig:
    page_size = int(rng.choice([1, 16, 64]))
    running = int(rng.integers(1, 40))
    return SchedulerConfig(
        num_pages=max(10, int(rng.choice([900, 3000, 100_000])) // page_size),
        page_size=page_size,
        max_model_len=4096,
        max_num_batched_tokens=max(running, int(rng.choice([64, 512, 4096]))),
        max_running_requests=running,
        policy=str(rng.choice(["fcfs", "lpm", "priority"])),  # type: ignore[arg-type]
        mode=str(rng.choice(["mixed", "prefill_first"])),  # type: ignore[arg-type]
        admission=str(rng.choice(["estimate", "reserve"])),  # type: ignore[arg-type]
        schedule_conservativeness=float(rng.choice([0.05, 1.0])),
        prefix_cache=bool(rng.random() < 0.7),
        eviction=str(rng.choice(["lru", "lfu"])),  # type: ignore[arg-type]
        max_plans_in_flight=int(rng.integers(1, 5)),
        cuda_graph_batch_sizes=(1, 2, 4, 8, 16, 32),
    )


def _workload(rng: np.random.Generator) -> Workload:
    n = int(rng.integers(5, 60))
    arrival = np.cumsum(rng.exponential(1e9 / rng.choice([5, 30, 200, 1e5]), n)).astype(np.int64)
    prompt, output = rng.integers(1, 400, n), rng.integers(1, 120, n)
    limit = np.where(rng.random(n) < 0.5, output, output + rng.integers(0, 200, n))
    shared = np.minimum(prompt, 64)
    keys, lengths = np.empty(2 * n, np.int64), np.empty(2 * n, np.int32)
    keys[0::2], keys[1::2] = rng.integers(0, 4, n), 1000 + np.arange(n)
    lengths[0::2], lengths[1::2] = shared, prompt - shared
    segments = PromptSegments(np.arange(n + 1) * 2, keys, lengths, 100_000 + np.arange(n), 128_256)
    workload = Workload.from_lengths(arrival, prompt, output, limit, segments)
    patience = np.where(rng.random(n) < 0.1, rng.integers(0, 3 * 10**9, n), -1)
    priority = rng.integers(0, 3, n).astype(np.int32)
    return dataclasses.replace(workload, abort_after_ns=patience, priority=priority)
