"""Laws of the router: each policy sends a request where it says."""

from __future__ import annotations

import numpy as np
from constant_costs import ConstantCosts

from engine.core.config import SchedulerConfig
from engine.core.events import Detail, EventLog
from engine.core.workload import PromptSegments, Workload
from simulator.router import RouterConfig
from simulator.world import ReplicaConfig, World

STEP_NS = 1_000_000
PROMPT, OUTPUT = 64, 4  # a request alone takes 4 steps


def homes(groups: list[int], gaps_steps: list[int], router: RouterConfig, replicas: int = 2):
    """The replica of each request. Requests of a group share their first 48 tokens."""
    n = len(groups)
    keys = np.column_stack((groups, 1000 + np.arange(n))).reshape(-1).astype(np.int64)
    segments = PromptSegments(
        offsets=np.arange(0, 2 * n + 1, 2),
        keys=keys,
        lengths=np.tile(np.array([48, PROMPT - 48], np.int32), n),
        output_keys=2000 + np.arange(n),
        vocab_size=50_000,
    )
    arrival_ns = np.cumsum(gaps_steps) * STEP_NS
    workload = Workload.from_lengths(
        arrival_ns, np.full(n, PROMPT), np.full(n, OUTPUT), segments=segments
    )
    scheduler = SchedulerConfig(num_pages=1000, max_model_len=1000)
    deployment = [ReplicaConfig(scheduler, ConstantCosts(STEP_NS))] * replicas
    log = EventLog(Detail.NONE)
    requests = World(workload, deployment, router, log=log).run().tables["requests"]
    return requests["replica"][np.argsort(requests["request_id"])].tolist()


def test_round_robin_takes_turns() -> None:
    """Requests go to the replicas in turn, however busy these are."""
    router = RouterConfig("round_robin")
    assert homes([0] * 7, [0, 0, 0, 50, 1, 50, 0], router, replicas=3) == [0, 1, 2, 0, 1, 2, 0]


def test_least_loaded_goes_to_the_fewest_live_requests() -> None:
    """The idlest replica gets the request, the first of them if there are several."""
    router = RouterConfig("least_loaded")
    assert homes([0] * 6, [0, 0, 0, 1, 50, 50], router, replicas=3) == [0, 1, 2, 0, 0, 0]


def test_cache_aware_goes_where_the_prefix_lies() -> None:
    """A request follows its group, also when the other replica's cache has changed as often."""
    router = RouterConfig("cache_aware")
    groups = [7, 8, 8, 7, 8, 7]
    # 7 goes to replica 0, 8 meanwhile to the idle replica 1; later each finds its own again.
    assert homes(groups, [0, 1, 50, 50, 50, 50], router) == [0, 1, 1, 0, 1, 0]


def test_cache_aware_leaves_a_crowd() -> None:
    """A replica that is busier than the idlest by more than the threshold is left alone."""
    router = RouterConfig("cache_aware", imbalance_threshold=2)
    # 7 is cached at replica 0; the next five arrive at once. After three of them replica 0 is ahead
    # by more than two, so the fourth goes to replica 1, and the balance is within bounds again.
    assert homes([7] * 6, [0, 50, 0, 0, 0, 0], router) == [0, 0, 0, 0, 1, 0]
