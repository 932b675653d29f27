"""Fits what predictions are made of (`simulator.calibrated`) to measured steps.

Decode steps of a CUDA Graph get a table each (`decode`), all others share one fit
(`mixed`), and the host has its own (`host`). All are of a GPU with cool clocks; what lower
clocks do to any step is one more fit (`power`), and what idle times do another
(`waking`). They are made of steps whose requests share no
context; what that saves is the last fit (`shared`).

Residuals say how well steps are predicted that were not fitted to: a knot of a decode table by its
neighbours, a decode step of another batch by the table, all other steps by a fit to four fifths of
the shapes, steps right after prompts by what they take after light ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from simulator.calibrated import HostCosts
from simulator.cost_model import StepFeatures, StepShape, sum_of_terms
from simulator.fitting.base import Float64, Steps, residual_of
from simulator.fitting.decode import GraphKnots, decode_tables, knots_by_graph
from simulator.fitting.host import fit_host, fit_result_ns
from simulator.fitting.hot import unseen_hot_errors
from simulator.fitting.mixed import best_mixed_fit, fit_mixed
from simulator.fitting.power import fit_power
from simulator.fitting.shared import fit_shared
from simulator.fitting.waking import fit_waking
from simulator.mixed_costs import MixedCosts
from simulator.profile import EngineFacts, Fit, ProfileError, Residual
from simulator.samples import (
    HostSamples,
    HotSamples,
    PowerSamples,
    Samples,
    WakeSamples,
    samples_problem,
)
from simulator.waking import WakeFit

DECODE: Final = "decode"
PREFILL: Final = "prefill"
PREFIX: Final = "prefill after a prefix"
MIXED: Final = "mixed"
EAGER_DECODE: Final = "eager decode"
SHARED: Final = "shared context"
LOW_CLOCKS: Final = "lower clocks"
REGIONS: Final = (DECODE, PREFILL, PREFIX, MIXED, EAGER_DECODE, SHARED, LOW_CLOCKS)
_FOLDS: Final = 5


def fit_profile(
    samples: Samples,
    host_samples: HostSamples,
    engine: EngineFacts,
    power_samples: PowerSamples | None = None,
    wake_samples: WakeSamples | None = None,
    hot_samples: HotSamples | None = None,
) -> Fit:
    """What predicts the samples best.

    Args:
        samples: measured steps.
        host_samples: the host's time of steps.
        engine: that ran them.
        power_samples: steps that were measured one after the other.
        wake_samples: first steps after idle times.
        hot_samples: steps right after prompts.

    Returns:
        The fit. Its `mixed` is None if nothing was measured but decode steps of CUDA Graphs.

    Raises:
        ProfileError: the samples cannot carry a fit; says what is missing.
    """
    problem = samples_problem(samples, host_samples, power_samples, wake_samples, hot_samples)
    if problem:
        raise ProfileError(problem)
    if not len(samples):
        raise ProfileError("there are no samples to fit to")
    steps = Steps(
        samples.features(), np.array(samples.gpu_ns, np.float64), np.array(samples.repeats)
    )
    if steps.ns.min() <= 0:
        raise ProfileError("a sample took no time")
    sharing = steps.features.shared_context > 0
    graphed = (steps.features.prefill_tokens == 0) & (steps.features.graph_batch > 0)
    decode, others = steps.at(graphed & ~sharing), steps.at(~graphed & ~sharing)
    graphs = list(knots_by_graph(decode))
    tables = tuple(decode_tables(graphs))
    mixed = fit_mixed(others, engine.graph_tokens) if len(others) else None
    shared, errors = fit_shared(steps.at(sharing), tables, mixed, engine.graph_tokens)
    pair_ns = 0.0 if mixed is None else mixed.pair_ns
    power = fit_power(steps, power_samples, pair_ns, hot_samples, engine.graph_tokens)
    errors_of = {SHARED: errors, LOW_CLOCKS: unseen_hot_errors(power, power_samples, hot_samples)}
    fit = Fit(
        decode=tables,
        mixed=mixed,
        host=fit_host(host_samples, engine.graph_tokens),
        limits=_limits(steps.features),
        residuals=tuple(_residuals(graphs, others, engine.graph_tokens, errors_of)),
        shared=shared,
        power=power,
    )
    return msgspec.structs.replace(
        fit, wake=_wake(fit, engine, wake_samples, fit_result_ns(host_samples))
    )


def _wake(
    fit: Fit, engine: EngineFacts, samples: WakeSamples | None, result_ns: float
) -> WakeFit | None:
    """What idle times add to what the fit says of steps; they were too short for clocks to fall."""
    if samples is None or fit.mixed is None:
        return None
    features = samples.features()
    gpu_ns = sum_of_terms(MixedCosts(fit.mixed, engine.graph_tokens).terms(features))
    host_ns = HostCosts(fit.host, engine.graph_tokens).column(features)
    return fit_waking(samples, gpu_ns.astype(np.float64), host_ns.astype(np.float64), result_ns)


def _limits(features: StepFeatures) -> dict[str, int]:
    """The largest value of each feature on which predictions depend."""
    return {
        name: int(getattr(features, name).max())
        for name in StepShape._fields
        if name != "active_experts"
    }


# How well it predicts.


def _residuals(
    graphs: Sequence[GraphKnots],
    others: Steps,
    graph_tokens: Sequence[int],
    more: dict[str, Float64],
) -> Iterator[Residual]:
    errors = {DECODE: _decode_errors(graphs)}
    if len(others):
        of_others, regions = _mixed_errors(others, graph_tokens), _regions(others.features)
        errors |= {region: of_others[regions == region] for region in REGIONS[1:-2]}
    errors |= more
    for region, percent in errors.items():
        if len(percent):
            yield residual_of(region, percent)


def _decode_errors(graphs: Sequence[GraphKnots]) -> Float64:
    """Percent by which tables miss steps that are no knots, and knots that were left out."""
    errors = [np.zeros(0)]
    for knots in graphs:
        for context in knots.context[1:-1].tolist():
            others, steps = knots.without(context)
            errors.append(100 * np.median(others.ns_of(steps) / steps.ns - 1, keepdims=True))
        errors.append(100 * (knots.ns_of(knots.others) / knots.others.ns - 1))
    return np.concatenate(errors)


def _mixed_errors(steps: Steps, graph_tokens: Sequence[int]) -> Float64:
    """Percent by which each step is missed by a fit to the folds that its shape is not in."""
    f = steps.features
    rows = np.column_stack([getattr(f, name) for name in StepShape._fields])
    distinct, shape = np.unique(rows, axis=0, return_inverse=True)
    fold = (np.random.default_rng(0).permutation(len(distinct)) % _FOLDS)[shape.ravel()]
    errors = np.zeros(len(steps))
    for index in np.unique(fold).tolist():
        unseen = fold == index
        costs = MixedCosts(best_mixed_fit(steps.at(~unseen), graph_tokens), graph_tokens)
        predicted = sum(costs.terms(steps.at(unseen).features).values())
        errors[unseen] = 100 * (predicted / steps.ns[unseen] - 1)
    return errors


def _regions(f: StepFeatures) -> NDArray[np.str_]:
    """The region of each step that is no decode graph."""
    conditions = [f.prefill_tokens == 0, f.decode_tokens > 0, f.prefill_context > 0]
    return np.select(conditions, [EAGER_DECODE, MIXED, PREFIX], PREFILL)
