"""What a cost model says of recorded steps of one replica."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from engine.core.events import Columns
from simulator.power_state import lengthened
from simulator.waking import Waking, longer_after_idling
from workbench.analysis.decode_share import features_of

if TYPE_CHECKING:
    from simulator.cost_model import CostModel, Int64

_NEVER_NS: Final = -(1 << 62)


def predicted_ns(model: CostModel, steps: Columns) -> Int64:
    """GPU time of all steps of a replica, in order, as if they had started when they did.

    Args:
        model: predicts.
        steps: columns of the table of steps, of one replica.

    Returns:
        int64[n]; 0 for a step without tokens, of which no cost model knows anything.
    """
    has_tokens = (steps["prefill_tokens"] > 0) | (steps["decode_tokens"] > 0)
    rows = np.flatnonzero(has_tokens)
    features = features_of(steps, rows)
    cool_ns = model.step_costs(features).gpu_ns
    tokens = features.prefill_tokens + features.decode_tokens
    starts_ns = steps["start_ns"][rows].astype(np.int64)
    predicted = np.zeros(len(has_tokens), np.int64)
    pairs = features.prefill_pairs
    predicted[rows] = lengthened(
        model.power, cool_ns, tokens, features.decode_tokens, starts_ns, pairs
    )
    predicted[rows] += longer_after_idling(model.wake, idle_ns(steps)[rows])
    return predicted


def predicted_leads_ns(model: CostModel, steps: Columns) -> Int64:
    """From the plan of each step of a replica to its begin, in order: int64[n].

    As a cost model has it where a step found an idle GPU; as recorded elsewhere, for there a step
    begins when others end.
    """
    leads_ns: Int64 = steps["start_ns"].astype(np.int64) - steps["plan_ns"]
    if model.wake is None:
        return leads_ns
    idle, waking = idle_ns(steps), Waking(model.wake)
    woke = (steps["prefill_tokens"] > 0) | (steps["decode_tokens"] > 0)
    rows = np.flatnonzero(woke & (idle > 0))
    hosts_ns = model.step_costs(features_of(steps, rows)).host_ns
    for row, host_ns in zip(rows.tolist(), hosts_ns.tolist(), strict=True):
        leads_ns[row] = waking.until_begin_ns(int(idle[row]), host_ns)
    return leads_ns


def predicted_results_ns(model: CostModel, steps: Columns) -> Int64:
    """From the end of each step of a replica on the GPU to its commit, in order: int64[n].

    The host knows of it as late as a cost model has it, and may still be busy then with the last
    step that it planned before. Of a step without tokens no cost model knows anything: as recorded.
    """
    ends_ns = steps["start_ns"].astype(np.int64) + steps["gpu_ns"]
    has_tokens = (steps["prefill_tokens"] > 0) | (steps["decode_tokens"] > 0)
    rows = np.flatnonzero(has_tokens)
    hosts_ns = steps["host_ns"].astype(np.int64)
    hosts_ns[rows] = model.step_costs(features_of(steps, rows)).host_ns
    free_ns = steps["plan_ns"] + hosts_ns
    last = np.searchsorted(steps["plan_ns"], steps["end_ns"], "left") - 1
    busy_ns = free_ns[np.maximum(last, np.arange(len(last)))] - ends_ns
    results_ns = np.maximum(busy_ns, Waking(model.wake).result_ns)
    found: Int64 = np.where(has_tokens, results_ns, steps["end_ns"] - ends_ns)
    return found


def idle_ns(steps: Columns) -> Int64:
    """How long the GPU had nothing to do when each step was planned; below 0: it was busy.

    Before the first one it did nothing for very long.
    """
    ends_ns = steps["start_ns"].astype(np.int64) + steps["gpu_ns"]
    before_ns = np.concatenate([[_NEVER_NS], ends_ns[:-1]])[: len(ends_ns)]
    idle: Int64 = steps["plan_ns"].astype(np.int64) - before_ns
    return idle
