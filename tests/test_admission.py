"""How much memory admission expects running requests to want."""

from __future__ import annotations

import numpy as np
import pytest
from constant_costs import ConstantCosts

from engine.core.admission import MOST_EXPECTED_TOKENS, NewTokenRatio
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


def test_an_idle_time_makes_admission_careful_again() -> None:
    """What a long run taught about output lengths is forgotten when nobody is left running."""
    count, gap_ns = 40, 100_000 * MS
    arrival = np.concatenate([[0], np.full(count, gap_ns)])
    outputs = np.concatenate([[900], np.full(count, 50)])
    limits = np.full(count + 1, 1000)
    lengths = np.full(count + 1, 16)
    workload = Workload.from_lengths(arrival, lengths, outputs, limits)
    config = SchedulerConfig(num_pages=1000, max_model_len=2048)
    running = World(workload, [ReplicaConfig(config, ConstantCosts(MS))]).run().tables["steps"]
    first_burst = int(running["running"][running["plan_ns"] == gap_ns].max())
    afresh = NewTokenRatio(1.0).at(0)
    tokens_free_for_others = (
        1000 * 16 - 1016
    )  # one page pool, less what the last one may use itself
    assert first_burst == 1 + int(tokens_free_for_others / (afresh * 1000 + 16))
