"""The fit of the host's time, by least absolute deviations: some steps take far longer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from simulator.cost_model import StepFeatures, StepShape
from simulator.fitting.base import nonnegative_costs
from simulator.mixed_costs import is_eager_prefill
from simulator.profile import HostFit, ProfileError
from simulator.samples import HostSamples

FEWEST_HOST: Final = 10
_ROUNDS: Final = 50  # of reweighting; the fit of the host settles in about 20


def fit_host(samples: HostSamples, graph_tokens: Sequence[int]) -> HostFit:
    """Time of the host with the least sum of absolute errors, which outliers hardly move.

    Args:
        samples: steps that an engine served.
        graph_tokens: to which it pads steps with prefill, ascending.

    Raises:
        ProfileError: there are too few samples.
    """
    if len(samples) < FEWEST_HOST:
        raise ProfileError(f"{len(samples)} samples of the host's time, a fit needs {FEWEST_HOST}")
    host_ns = np.array(samples.host_ns, np.float64)
    amounts = (samples.requests, samples.prefill_requests, samples.prefill_tokens)
    f = _features(samples)
    kinds = (f.prefill_tokens > 0, is_eager_prefill(f, graph_tokens))
    columns = np.column_stack([np.ones(len(samples)), *amounts, *kinds]).astype(np.float64)
    # An error below this is as good as none; without it a step that fits exactly would decide all.
    least_error = 1.0 + 1e-3 * float(np.median(host_ns))
    weights = np.ones(len(samples))
    for _ in range(_ROUNDS):
        costs = nonnegative_costs(columns, host_ns, weights)
        weights = 1 / np.sqrt(np.maximum(np.abs(columns @ costs - host_ns), least_error))
    return HostFit(**dict(zip(HostFit.__struct_fields__, costs.tolist(), strict=True)))


def fit_result_ns(samples: HostSamples) -> float:
    """From the end of a step until the host knows of it, while it does nothing else.

    That is so where it waits for a step that only decodes. 0 where none was measured.
    """
    known = [
        ns
        for ns, prompts in zip(samples.result_ns, samples.prefill_requests, strict=False)
        if not prompts
    ]
    return float(np.median(known)) if known else 0.0


def _features(samples: HostSamples) -> StepFeatures:
    rows = zip(samples.requests, samples.prefill_requests, samples.prefill_tokens, strict=True)
    return StepFeatures.from_shapes(
        [
            StepShape(
                prefill_tokens=tokens,
                prefill_requests=prompts,
                decode_requests=requests - prompts,
                decode_tokens=requests - prompts,
            )
            for requests, prompts, tokens in rows
        ]
    )
