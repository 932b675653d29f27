"""The fit of what the first step after an idle time takes longer."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np

from simulator.fitting.base import Float64
from simulator.fitting.decode import ascending
from simulator.samples import WakeSamples
from simulator.waking import WakeFit

_APART: Final = 1.5  # idle times that are further apart, as a ratio, are different ones
_FEWEST: Final = 3  # steps that tell what an idle time does


def fit_waking(
    samples: WakeSamples | None, gpu_ns: Float64, host_ns: Float64, result_ns: float = 0.0
) -> WakeFit | None:
    """The fit; None: there is nothing to fit it to.

    Args:
        samples: n first steps after idle times.
        gpu_ns: float64[n], what these steps take among others.
        host_ns: float64[n], what the host takes for them.
        result_ns: from the end of a step until the host knows of it.
    """
    if samples is None or not len(samples):
        return None
    idle = np.array(samples.idle_ns, np.float64)
    longer = np.array(samples.gpu_ns) - gpu_ns
    lead = np.array(samples.lead_ns, np.float64)
    order = np.argsort(idle, kind="stable")
    starts = [0] + [
        at + 1
        for at, (one, next_one) in enumerate(pairwise(idle[order].tolist()))
        if next_one > _APART * one
    ]
    groups = [rows for rows in np.split(order, starts[1:]) if len(rows) >= _FEWEST]
    if not groups:
        return None
    counts = np.array([len(rows) for rows in groups], np.float64)
    medians = np.array([np.median(longer[rows]) for rows in groups])
    # What the host does after the GPU has begun is beside it: of the shortest idle times they tell
    # how long a GPU waits for a host that never slept.
    most_host_ns = min(float(np.median(lead[groups[0]])), float(np.median(host_ns[groups[0]])))
    beyond = lead - np.minimum(host_ns, most_host_ns)
    return WakeFit(
        idle_ns=tuple(round(float(np.median(idle[rows]))) for rows in groups),
        gpu_ns=tuple(np.maximum(ascending(medians, counts), 0.0).tolist()),
        lead_ns=tuple(float(np.median(beyond[rows])) for rows in groups),
        most_host_ns=round(most_host_ns),
        result_ns=round(result_ns),
    )
