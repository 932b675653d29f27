"""How much memory admission expects running requests to want."""

from __future__ import annotations

import numpy as np
import pytest
from constant_costs import ConstantCosts

from engine.core.admission import MOST_EXPECTED_TOKENS
from engine.core.config import SchedulerConfig
from engine.core.workload import Workload
from simulator.world import ReplicaConfig, World

MS = 1_000_000


def peak_running(max_tokens: int, **changes: object) -> int:
    """Most requests at a time of 300 that come in 3 s and stop after 200 tokens (2 s)."""
    count = 300
    workload = Workload.from_lengths(
        np.arange(count) * 10 * MS,
        np.full(count, 600),
        np.full(count, 200),
        np.full(count, max_tokens),
    )
    config = SchedulerConfig(num_pages=55_000, max_model_len=131_072, **changes)  # type: ignore[arg-type]
    world = World(workload, [ReplicaConfig(config, ConstantCosts(10 * MS))])
    return int(world.run().tables["steps"]["running"].max())


def test_clients_that_allow_everything_are_not_believed() -> None:
    """Above a bound, max_tokens no longer keeps requests out of a pool that is nearly empty."""
    at_the_bound = peak_running(MOST_EXPECTED_TOKENS)
    assert at_the_bound > 190
    assert peak_running(16 * MOST_EXPECTED_TOKENS) == at_the_bound


@pytest.mark.parametrize("max_tokens", [65_536, 131_072 - 600])
def test_reserving_believes_them(max_tokens: int) -> None:
    """Full reservation admits as many as could all use their max_tokens."""
    fit = 55_000 // -(-(600 + max_tokens - 1) // 16)
    assert peak_running(max_tokens, admission="reserve") == fit
