"""The fit of the host's time, by least absolute deviations: some steps take far longer."""

from __future__ import annotations

from typing import Final

import numpy as np

from simulator.fit_base import nonnegative_costs
from simulator.profile import HostFit, ProfileError
from simulator.samples import HostSamples

FEWEST_HOST: Final = 10
_ROUNDS: Final = 50  # of reweighting; the fit of the host settles in about 20


def fit_host(samples: HostSamples) -> HostFit:
    """Time of the host with the least sum of absolute errors, which outliers hardly move.

    Raises:
        ProfileError: there are too few samples.
    """
    if len(samples) < FEWEST_HOST:
        raise ProfileError(f"{len(samples)} samples of the host's time, a fit needs {FEWEST_HOST}")
    host_ns = np.array(samples.host_ns, np.float64)
    amounts = (samples.requests, samples.prefill_requests, samples.prefill_tokens)
    columns = np.column_stack([np.ones(len(samples)), *amounts]).astype(np.float64)
    # An error below this is as good as none; without it a step that fits exactly would decide all.
    least_error = 1.0 + 1e-3 * float(np.median(host_ns))
    weights = np.ones(len(samples))
    for _ in range(_ROUNDS):
        costs = nonnegative_costs(columns, host_ns, weights)
        weights = 1 / np.sqrt(np.maximum(np.abs(columns @ costs - host_ns), least_error))
    return HostFit(**dict(zip(HostFit.__struct_fields__, costs.tolist(), strict=True)))
