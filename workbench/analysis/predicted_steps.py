"""What a cost model says of recorded steps of one replica."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.core.events import Columns
from simulator.power_state import lengthened
from workbench.analysis.decode_share import features_of

if TYPE_CHECKING:
    from simulator.cost_model import CostModel, Int64


def predicted_ns(model: CostModel, steps: Columns) -> Int64:
    """GPU time of all steps of a replica, in order, as if they had started when they did.

    Args:
        model: predicts.
        steps: columns of the table of steps, of one replica.

    Returns:
        int64[n].
    """
    features = features_of(steps, np.arange(len(steps["gpu_ns"])))
    cool_ns = model.step_costs(features).gpu_ns
    tokens = features.prefill_tokens + features.decode_tokens
    return lengthened(model.power, cool_ns, tokens, steps["start_ns"].astype(np.int64))
