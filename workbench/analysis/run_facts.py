"""Settings of a run, looked up in its header."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from workbench.record.header import RunHeader


def scheduler_setting(header: RunHeader, key: str) -> Any:
    """A setting of the scenario's scheduler; None if the header does not hold it."""
    scheduler = header.scenario.get("scheduler")
    return scheduler.get(key) if isinstance(scheduler, dict) else None


def pool_of(header: RunHeader, replica: int) -> dict[str, Any]:
    """The scenario's pool that a replica belongs to; empty if the header does not hold it."""
    deployment = header.scenario.get("deployment")
    pools = deployment.get("pools", ()) if isinstance(deployment, dict) else ()
    for pool in pools:
        replica -= int(pool.get("replicas", 1))
        if replica < 0:
            return dict(pool)
    return {}


def graph_batch_sizes(header: RunHeader, replica: int) -> tuple[int, ...]:
    """CUDA Graph batch sizes of a replica; empty if the header does not hold them."""
    return tuple(pool_of(header, replica).get("cuda_graph_batch_sizes") or ())


def replica_values(header: RunHeader, name: str, replicas: Iterable[int]) -> str:
    """Values of a `ReplicaFacts` field on some replicas, for people: "64", or "64 / 128"."""
    known = [header.replicas[i] for i in replicas if 0 <= i < len(header.replicas)]
    return " / ".join(str(value) for value in sorted({getattr(facts, name) for facts in known}))
