"""How much of the GPU time of decoding is waiting for the CPU to launch kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from workbench.analysis.decode_share import features_of
from workbench.analysis.rebuilt_models import rebuild_cost_models
from workbench.analysis.source import RunTables, int64

if TYPE_CHECKING:
    from simulator.cost_model import CostModel

LAUNCH_TERM: Final = "launch"


def eager_launch_share(run: RunTables, cost_models: Mapping[int, CostModel] | None = None) -> float:
    """Share (0 to 1) of the GPU time of decode-only steps that eager ones spend on launches.

    CUDA Graphs would take that share away. 0 where all steps ran as graphs, or where no cost model
    with such a term speaks for the replica.

    Args:
        run: with its steps recorded.
        cost_models: replica -> its cost model; None: those that the header names.
    """
    steps = run.table("steps")
    decode_only = (steps["decode_requests"] > 0) & (steps["prefill_tokens"] == 0)
    eager = decode_only & (steps["graph_batch"] == 0)
    if not eager.any():
        return 0.0
    models = rebuild_cost_models(run) if cost_models is None else cost_models
    launch_ns = 0
    for replica, model in models.items():
        rows = np.flatnonzero(eager & (steps["replica"] == replica))
        term = model.step_costs(features_of(steps, rows)).terms.get(LAUNCH_TERM)
        launch_ns += 0 if term is None else int(term.sum())
    return launch_ns / max(int(int64(steps, "gpu_ns")[decode_only].sum()), 1)
