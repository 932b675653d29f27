"""The fit of what a GPU's power limit does to steps.

It is made of steps of two kinds that ran one after the other, more and more of those that compute
among those that read memory. What those that compute take longer than with cool clocks, by the load
during them, is a table that does not descend; those that read take a share of it, and so tell of it
too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from simulator.cost_model import StepFeatures
from simulator.fitting.base import Float64, Steps
from simulator.fitting.decode import ascending
from simulator.fitting.hot import with_kernels
from simulator.power_state import COLD, DECODING, PowerFit, after
from simulator.samples import HotSamples, PowerSamples

_BINS: Final = 20  # of loads from 0 to 1
_COOL: Final = 0.2  # loads up to here are cool, or as cool as there were any
_FASTEST: Final = 0.05  # share of steps of a kind that had cool clocks, at least
_ROUNDS: Final = 4
_FEWEST: Final = 5  # steps of a kind that tell its time
_OF_A_LOAD: Final = 10  # that tell what a load does: fewer were met in passing, when clocks lagged
_NOTHING: Final = 0.005  # slower by less than that is as good as not at all
_NOT_TOLD: Final = 0.002  # nor can less than that be told from nothing, by any number of steps
_ROUNDING: Final = 1e-6  # of a load: light steps tell the lowest themselves
_SIGMA: Final = 1.4826  # standard deviation of what typically differs so much from its median


def fit_power(
    steps: Steps,
    samples: PowerSamples | None,
    pair_ns: float,
    hot: HotSamples | None = None,
    graph_tokens: Sequence[int] = (),
) -> PowerFit | None:
    """The fit; None: there is nothing to fit it to.

    Args:
        steps: measured with cool clocks, of all kinds.
        pair_ns: what a (query, key) pair of their prompts takes.
        samples: measured one after the other; steps of the most tokens compute, all others read.
        hot: steps right after prompts, which tell which kernels follow the clocks more than others.
        graph_tokens: ascending, to which steps with prompts are padded.
    """
    token_ns = least_token_ns(steps.features, steps.ns)
    if samples is None or not len(samples) or token_ns == 0.0:
        return None
    fit = _fit_of(token_ns, pair_ns, samples)
    if fit is None:
        return None
    fit = msgspec.structs.replace(fit, graph_tokens=tuple(graph_tokens))
    return fit if hot is None else with_kernels(fit, samples, hot)


def _fit_of(token_ns: float, pair_ns: float, samples: PowerSamples) -> PowerFit | None:
    """The fit without anything that steps right after prompts tell."""
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
    fit = _fit_of_kinds(token_ns, computing, reading)
    if fit is None:
        return None
    light_ns = float(base[~computes][0])
    return msgspec.structs.replace(fit, pair_ns=pair_ns, light_ns=light_ns)


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


@dataclass(frozen=True, slots=True)
class _Kind:
    """Steps of one kind, by the bin of loads that they met.

    Attributes:
        busy: their share of arithmetic.
        loads: float64[bins], their median; 0 where there are too few.
        longer: float64[bins], what they take longer than with cool clocks, as a share; likewise.
        weights: float64[bins], of that: one over the variance.
    """

    busy: float
    loads: Float64
    longer: Float64
    weights: Float64

    @classmethod
    def of(
        cls, loads: Float64, ns: Float64, cool_ns: Float64, tokens: Float64, token_ns: float
    ) -> _Kind:
        base = float(cool_ns[0])
        bins = np.minimum((loads * _BINS).astype(np.int64), _BINS - 1)
        counts = np.bincount(bins, minlength=_BINS)
        found = np.zeros((3, _BINS))
        for at in np.flatnonzero(counts >= _OF_A_LOAD).tolist():
            longer = ns[bins == at] / base - 1
            median = np.median(longer)
            noise = _SIGMA * np.median(np.abs(longer - median))
            weight = 1.0 / (noise**2 / counts[at] + _NOT_TOLD**2)
            found[:, at] = np.median(loads[bins == at]), median, weight
        busy = min(1.0, float(np.median(tokens)) * token_ns / base)
        return cls(busy, *found)


def _fit_of_kinds(token_ns: float, computing: _Kind, reading: _Kind) -> PowerFit | None:
    ratio = _ratio(np.where(computing.weights > 0, computing.longer, 0.0), reading)
    for _ in range(_ROUNDS):
        loads, longer = _curve(computing, reading, ratio)
        if len(loads) < 2 or longer[-1] < _NOTHING:  # the GPU has power to spare for such a model
            return None
        ratio = _ratio(np.interp(reading.loads, loads, longer), reading)
    memory_share = _memory_share(computing, reading, ratio)
    whole = longer / (memory_share + (1.0 - memory_share) * computing.busy)
    return PowerFit(
        token_ns=token_ns,
        load=tuple(loads.tolist()),
        slowdown=tuple(np.where(longer < _NOT_TOLD, 0.0, whole).tolist()),
        memory_share=memory_share,
        light_busy=_snapped(min(1.0, DECODING * reading.busy), float(loads[0])),
    )


def _snapped(value: float, place: float) -> float:
    """The place, if a value is that but for rounding."""
    return place if abs(value - place) < _ROUNDING else value


def _curve(computing: _Kind, reading: _Kind, ratio: float) -> tuple[Float64, Float64]:
    """(loads, what steps that compute take longer at each), of what both kinds tell of it.

    Args:
        computing: steps.
        reading: steps.
        ratio: of what these take longer to what those do.
    """
    of_reading = reading.weights * ratio**2
    weights = computing.weights + of_reading
    seen = np.flatnonzero(weights > 0)
    if not len(seen):
        return np.zeros(0), np.zeros(0)
    share = computing.weights[seen] / weights[seen]
    # Where none computed, what hardly shows in steps that read would be anything.
    most = np.max(computing.longer[seen], initial=0.0)
    told = np.minimum(reading.longer[seen], ratio * most) / ratio if ratio > 0.0 else 0.0
    longer = share * computing.longer[seen] + (1.0 - share) * told
    loads = share * computing.loads[seen] + (1.0 - share) * reading.loads[seen]
    return loads, np.maximum(ascending(longer, weights[seen]), 0.0)


def _ratio(longer: Float64, reading: _Kind) -> float:
    """What steps that read take longer, as a share of what those that compute do in each bin."""
    weight = float(np.sum(reading.weights * longer**2))
    if weight == 0.0:
        return 0.0
    return max(0.0, float(np.sum(reading.weights * reading.longer * longer)) / weight)


def _memory_share(computing: _Kind, reading: _Kind, ratio: float) -> float:
    """How much of the slowdown steps have that only read.

    It is the m of ratio = (m + (1 - m) busy of readers) / (m + (1 - m) busy of those that compute).
    """
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
