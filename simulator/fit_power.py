"""The fit of what a GPU's power limit does to steps.

It is made of steps of two kinds that ran one after the other, more and more of those that compute
among those that read memory. What each kind takes longer than with cool clocks, by the load during
it, is a table that does not descend.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from simulator.cost_model import Int64, StepFeatures
from simulator.fit_base import Float64, Steps
from simulator.fit_decode import ascending
from simulator.power_state import COLD, DECODING, PowerFit, after
from simulator.samples import PowerSamples

_BINS: Final = 20  # of loads from 0 to 1
_COOL: Final = 0.2  # loads up to here are cool, or as cool as there were any
_FASTEST: Final = 0.05  # share of steps of a kind that had cool clocks, at least
_ROUNDS: Final = 4
_FEWEST: Final = 5  # steps of a kind that tell its time
_NOTHING: Final = 0.005  # slower by less than that is as good as not at all


def fit_power(steps: Steps, samples: PowerSamples | None, pair_ns: float) -> PowerFit | None:
    """The fit; None: there is nothing to fit it to.

    Args:
        steps: measured with cool clocks, of all kinds.
        pair_ns: what a (query, key) pair of their prompts takes.
        samples: measured one after the other; steps of the most tokens compute, all others read.
    """
    token_ns = least_token_ns(steps.features, steps.ns)
    if samples is None or not len(samples) or token_ns == 0.0:
        return None
    tokens = np.array(samples.tokens, np.float64)
    ns = np.array(samples.gpu_ns, np.float64)
    computes = tokens == tokens.max()
    kinds = (computes, ~computes)
    heating = np.where(computes, tokens, DECODING * tokens)
    if min(map(np.count_nonzero, kinds)) < _FEWEST:
        return None
    # What a step is busy with is a share of its time with cool clocks, and which clocks were cool
    # is a matter of what steps were busy with.
    base = np.empty(len(ns))
    for rows in kinds:
        base[rows] = np.quantile(ns[rows], _FASTEST)
    for _ in range(_ROUNDS):
        loads = loads_during(token_ns, heating, ns, base)
        for rows in kinds:
            base[rows] = _cool_ns(loads[rows], ns[rows])
    computing, reading = (
        _Kind.of(loads[rows], ns[rows], base[rows], tokens[rows], token_ns) for rows in kinds
    )
    fit = _fit_of(token_ns, computing, reading)
    return None if fit is None else msgspec.structs.replace(fit, pair_ns=pair_ns)


def loads_during(token_ns: float, tokens: Float64, ns: Float64, cool_ns: Float64) -> Float64:
    """The load in the middle of each step, on a GPU that was cool before the first.

    Args:
        token_ns: arithmetic of a token.
        tokens: float64[n], of steps that ran one after the other, as many as they heat like.
        ns: float64[n], that they took.
        cool_ns: float64[n], that they take with cool clocks.

    Returns:
        float64[n].
    """
    loads, load = np.empty(len(ns)), COLD
    shares = np.minimum(1.0, tokens * token_ns / cool_ns)
    for at, (busy, took, cool) in enumerate(
        zip(shares.tolist(), ns.tolist(), cool_ns.tolist(), strict=True)
    ):
        loads[at] = after(load, busy, cool / 2).load
        load = after(load, busy, took)
    return loads


def _cool_ns(loads: Float64, ns: Float64) -> float:
    """What steps of one kind take at the lowest loads."""
    return float(np.median(ns[loads <= max(_COOL, float(np.quantile(loads, _FASTEST)))]))


class _Kind:
    """Steps of one kind, by the bin of loads that they met: NaN where there are too few.

    Attributes:
        busy: their share of arithmetic.
        loads: float64[bins], their median.
        longer: float64[bins], what they take longer than with cool clocks, as a share.
        counts: float64[bins], how many there are.
    """

    def __init__(self, busy: float, loads: Float64, longer: Float64, counts: Float64) -> None:
        self.busy, self.loads, self.longer, self.counts = busy, loads, longer, counts

    @classmethod
    def of(
        cls, loads: Float64, ns: Float64, cool_ns: Float64, tokens: Float64, token_ns: float
    ) -> _Kind:
        base = float(cool_ns[0])
        bins = np.minimum((loads * _BINS).astype(np.int64), _BINS - 1)
        counts = np.bincount(bins, minlength=_BINS)
        medians = np.full((2, _BINS), np.nan)
        for at in np.flatnonzero(counts >= _FEWEST).tolist():
            medians[:, at] = np.median(loads[bins == at]), np.median(ns[bins == at]) / base - 1
        busy = min(1.0, float(np.median(tokens)) * token_ns / base)
        return cls(busy, medians[0], medians[1], counts.astype(np.float64))


def _fit_of(token_ns: float, computing: _Kind, reading: _Kind) -> PowerFit | None:
    seen = np.flatnonzero(~np.isnan(computing.longer))
    if len(seen) < 2:
        return None
    longer = np.maximum(ascending(computing.longer[seen], computing.counts[seen]), 0.0)
    if longer.max() < _NOTHING:  # the GPU has power to spare for such a model
        return None
    memory_share = _memory_share(computing, reading, longer, seen)
    whole = longer / (memory_share + (1.0 - memory_share) * computing.busy)
    return PowerFit(
        token_ns=token_ns,
        load=tuple(computing.loads[seen].tolist()),
        slowdown=tuple(whole.tolist()),
        memory_share=memory_share,
        light_busy=min(1.0, DECODING * reading.busy),
    )


def _memory_share(computing: _Kind, reading: _Kind, longer: Float64, seen: Int64) -> float:
    """How much of the slowdown steps have that only read, from what both kinds take longer."""
    other = reading.longer[seen]
    both = ~np.isnan(other)
    weight = float(np.sum(longer[both] ** 2))
    if weight == 0.0:
        return 0.0
    ratio = float(np.sum(np.maximum(other[both], 0.0) * longer[both])) / weight
    # ratio = (m + (1 - m) busy of the readers) / (m + (1 - m) busy of those that compute)
    rest = 1.0 - reading.busy - ratio * (1.0 - computing.busy)
    share = (ratio * computing.busy - reading.busy) / rest if rest > 0.0 else 1.0
    return min(1.0, max(0.0, share))


def least_token_ns(f: StepFeatures, ns: Float64) -> float:
    """The least time that a token of a prompt was seen to take; 0: there were no prompts.

    Args:
        f: n steps.
        ns: float64[n], what they took.
    """
    prompts = (f.decode_tokens == 0) & (f.prefill_context == 0) & (f.prefill_tokens > 0)
    if not prompts.any():
        return 0.0
    return float(np.min(ns[prompts] / f.prefill_tokens[prompts]))
