"""Fits what predictions are made of (`simulator.calibrated`) to measured steps.

Decode steps of a CUDA Graph get a table each, straight from what was measured. All others share one
nonnegative least squares fit of relative errors; its table of tokens is made of rises between
knots, so that no cost can be negative and none can fall. Where the larger of two times counts, the
fit goes back and forth between which that is for each step, and what it costs. The time of the host
is fitted by least absolute deviations, since a few of its steps take far longer than the rest.

Residuals say how well steps are predicted that were not fitted to: a knot of a decode table by its
neighbours, a decode step of another batch by the table, all other steps by a fit to four fifths of
the shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from simulator.calibrated import Curve, MixedCosts, launch_kinds, padded_tokens
from simulator.cost_model import Int64, StepFeatures, StepShape
from simulator.profile import (
    DecodeTable,
    EngineFacts,
    Fit,
    HostFit,
    HostSamples,
    LaunchFit,
    MixedFit,
    ProfileError,
    Residual,
    Samples,
    samples_problem,
)

Float64 = NDArray[np.float64]

DECODE: Final = "decode"
PREFILL: Final = "prefill"
PREFIX: Final = "prefill after a prefix"
MIXED: Final = "mixed"
EAGER_DECODE: Final = "eager decode"
REGIONS: Final = (DECODE, PREFILL, PREFIX, MIXED, EAGER_DECODE)

FEWEST_MIXED: Final = 20  # twice as many as a fit with two knots has unknowns
FEWEST_HOST: Final = 10
_MOST_KNOTS: Final = 150  # of the table of tokens
LAST_INTERVAL: Final = 1.05  # of a table: its end is at least this multiple of its start
_EVEN: Final = 6.0  # times the mean context: no request of a usual batch has a longer one
_FOLDS: Final = 5
_ROUNDS: Final = 50  # of reweighting; the fit of the host settles in about 20
_GUESSES: Final = 25  # of what bounds each step; they settle in about 10
_LAUNCH_BOUND: Final = 1.03  # times the launches: a step that takes less tells only of them
_FEWEST_OF_KIND: Final = 3  # steps that tell what launches take
_OUTLIER: Final = 2.5  # times the typical error: beyond that a step counts for less
_LEAST_ERROR: Final = 0.005  # of a step's time, which is as good as none
_FEW_TOKENS: Final = 256  # of a prompt: its attention leaves multiprocessors idle, at first guess

# The columns that follow the table's in a fit of mixed steps: fields of `MixedFit`.
_RATES: Final = (
    "pair_ns",
    "context_ns",
    "max_context_ns",
    "decode_context_ns",
    "prefill_request_ns",
    "decode_request_ns",
    "logits_ns",
    "logit_row_ns",
)
_ATTENTION: Final = 3  # of these, only the first two or the third count for a step


@dataclass(frozen=True, slots=True)
class _Steps:
    """Measured steps.

    Attributes:
        features: of n steps.
        ns: float64[n], their time.
        repeats: int64[n], how often each was measured.
    """

    features: StepFeatures
    ns: Float64
    repeats: Int64

    def at(self, rows: NDArray[np.bool_] | Int64) -> _Steps:
        """Some of them."""
        columns = (getattr(self.features, field.name)[rows] for field in fields(self.features))
        return _Steps(StepFeatures(*columns), self.ns[rows], self.repeats[rows])

    def __len__(self) -> int:
        return len(self.ns)


def fit_profile(samples: Samples, host_samples: HostSamples, engine: EngineFacts) -> Fit:
    """What predicts the samples best.

    Args:
        samples: measured steps.
        host_samples: the host's time of steps.
        engine: that ran them.

    Returns:
        The fit. Its `mixed` is None if nothing was measured but decode steps of CUDA Graphs.

    Raises:
        ProfileError: the samples cannot carry a fit; says what is missing.
    """
    problem = samples_problem(samples, host_samples)
    if problem:
        raise ProfileError(problem)
    if not len(samples):
        raise ProfileError("there are no samples to fit to")
    steps = _Steps(
        samples.features(), np.array(samples.gpu_ns, np.float64), np.array(samples.repeats)
    )
    if steps.ns.min() <= 0:
        raise ProfileError("a sample took no time")
    graphed = (steps.features.prefill_tokens == 0) & (steps.features.graph_batch > 0)
    decode, others = steps.at(graphed), steps.at(~graphed)
    graphs = list(_knots_by_graph(decode))
    mixed = _checked_mixed_fit(others, engine.graph_tokens) if len(others) else None
    return Fit(
        decode=tuple(_decode_tables(graphs)),
        mixed=mixed,
        host=fit_host(host_samples),
        limits=_limits(steps.features),
        residuals=tuple(_residuals(graphs, others, engine.graph_tokens)),
    )


def _limits(features: StepFeatures) -> dict[str, int]:
    """The largest value of each feature on which predictions depend."""
    return {
        name: int(getattr(features, name).max())
        for name in StepShape._fields
        if name != "active_experts"
    }


# Decode steps that run as a CUDA Graph.


@dataclass(frozen=True, slots=True)
class _Knots:
    """What a decode table is made of.

    Attributes:
        graph_batch: whose.
        context: int64[n], ascending.
        ns: float64[n], median time at each.
        weights: float64[n], how often each was measured.
        others: steps of the graph that are no knots.
    """

    graph_batch: int
    context: Int64
    ns: Float64
    weights: Float64
    others: _Steps

    def curve(self, rows: NDArray[np.bool_] | slice = slice(None)) -> Curve:
        """The table of some of them."""
        return Curve(
            self.context[rows].tolist(), ascending(self.ns[rows], self.weights[rows]).tolist()
        )


def _decode_tables(graphs: Sequence[_Knots]) -> Iterator[DecodeTable]:
    """The tables of those graphs that have one; the others lie between their neighbours."""
    tabled = [knots for knots in graphs if len(knots.context) > 1]
    if graphs and not tabled:
        raise ProfileError(
            f"graph batch {graphs[0].graph_batch} was measured at one context, its table needs two"
            f" that differ by {LAST_INTERVAL - 1:.0%}"
        )
    for knots in tabled:
        yield DecodeTable(
            graph_batch=knots.graph_batch,
            context=tuple(knots.context.tolist()),
            ns=tuple(ascending(knots.ns, knots.weights).tolist()),
        )


def _knots_by_graph(steps: _Steps) -> Iterator[_Knots]:
    """The knots of each graph batch, ascending."""
    for graph_batch in np.unique(steps.features.graph_batch).tolist():
        of_graph = steps.at(steps.features.graph_batch == graph_batch)
        typical = _are_typical(of_graph.features)
        if len(np.unique(of_graph.features.decode_context[typical])) < 2:
            typical[:] = True
        chosen = of_graph.at(typical)
        contexts, knot = np.unique(chosen.features.decode_context, return_inverse=True)
        kept = np.flatnonzero(_may_be_knots(contexts))
        yield _Knots(
            graph_batch,
            contexts[kept],
            np.array([np.median(chosen.ns[knot == index]) for index in kept]),
            np.array([chosen.repeats[knot == index].sum() for index in kept], np.float64),
            of_graph.at(~typical),
        )


def _are_typical(f: StepFeatures) -> NDArray[np.bool_]:
    """Which steps of one graph tell how it depends on context alone.

    Those without a request that is much longer than the others. With one they take the same time
    if the model is right; between knots they would bend the table if it is not.
    """
    typical: NDArray[np.bool_] = (
        f.decode_max_context * f.decode_requests <= _EVEN * f.decode_context
    )
    return typical


def _may_be_knots(places: Int64) -> NDArray[np.bool_]:
    """Which ascending places may be knots: the last, and none that is all but the last.

    Everything beyond goes by the slope of the last interval, which would be nothing but noise.
    """
    kept: NDArray[np.bool_] = places * LAST_INTERVAL <= places[-1]
    kept[-1] = True
    return kept


def ascending(values: Float64, weights: Float64) -> Float64:
    """The nearest values that do not descend, by weighted least squares (pool adjacent violators).

    Args:
        values: float64[n].
        weights: float64[n], above 0.
    """
    pools: list[tuple[float, float, int]] = []  # (mean, weight, how many)
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pool = value, weight, 1
        while pools and pools[-1][0] > pool[0]:
            pool = _pooled(pools.pop(), pool)
        pools.append(pool)
    return np.concatenate([np.full(count, mean) for mean, _, count in pools])


def _pooled(
    one: tuple[float, float, int], other: tuple[float, float, int]
) -> tuple[float, float, int]:
    weight = one[1] + other[1]
    return (one[0] * one[1] + other[0] * other[1]) / weight, weight, one[2] + other[2]


# All other steps.


def _checked_mixed_fit(steps: _Steps, graph_tokens: Sequence[int]) -> MixedFit:
    """The fit of all steps that are no decode graph.

    Args:
        steps: measured.
        graph_tokens: to which steps with prefill are padded.

    Raises:
        ProfileError: they are too few, or all of one size.
    """
    if len(steps) < FEWEST_MIXED:
        raise ProfileError(
            f"{len(steps)} samples of steps with prefill or without a graph, a fit needs"
            f" {FEWEST_MIXED}"
        )
    if len(np.unique(padded_tokens(steps.features, graph_tokens))) < 2:
        raise ProfileError("all steps with prefill have one number of tokens, a fit needs two")
    return _mixed_fit(steps, graph_tokens)


def _mixed_fit(steps: _Steps, graph_tokens: Sequence[int]) -> MixedFit:
    """The best of a series of fits, each with what the one before says of what bounds each step."""
    f = steps.features
    knots = _token_knots(f, graph_tokens)
    rises, rates = _rises(padded_tokens(f, graph_tokens), knots), _rate_columns(f)
    kinds = launch_kinds(f, graph_tokens)
    least = _first_launches(kinds, steps.ns)
    serial = (f.prefill_requests == 1) & (f.prefill_context > 0) & (f.prefill_tokens <= _FEW_TOKENS)
    bound = steps.ns <= _LAUNCH_BOUND * least[kinds]
    trust = np.ones(len(steps))
    best, best_error = None, np.inf
    for _ in range(_GUESSES):
        costs = _costs(rises, rates, steps.ns, trust, serial, bound)
        own = costs[len(knots) :]
        all_ns, longest_ns = rates[:, :2] @ own[:2], rates[:, 2] * own[2]
        work_ns = rises @ costs[: len(knots)] + rates[:, _ATTENTION:] @ own[_ATTENTION:]
        work_ns += np.maximum(all_ns, longest_ns)
        least = _best_launches(kinds, work_ns, steps.ns)
        errors = np.abs(np.maximum(work_ns, least[kinds]) / steps.ns - 1)
        typical = _OUTLIER * max(_LEAST_ERROR, float(np.median(errors)))
        # Huber's loss: squares up to there, and beyond it lines.
        error = float(
            np.sum(np.where(errors < typical, errors**2, typical * (2 * errors - typical)))
        )
        trust = np.sqrt(typical / np.maximum(errors, typical))
        if error < best_error:
            best, best_error = (costs, least), error
        before = serial, bound
        serial = longest_ns > all_ns
        bound = np.maximum(steps.ns, work_ns) <= _LAUNCH_BOUND * least[kinds]
        if all(map(np.array_equal, before, (serial, bound))):
            break
    if best is None:
        raise AssertionError("an error of a fit is finite")
    costs, least = best
    return MixedFit(
        tokens=tuple(knots.tolist()),
        ns=tuple(np.cumsum(costs[: len(knots)]).tolist()),
        **dict(zip(_RATES, costs[len(knots) :].tolist(), strict=True)),
        launches=LaunchFit(**dict(zip(LaunchFit.__struct_fields__, least.tolist(), strict=True))),
    )


def _costs(
    rises: Float64,
    rates: Float64,
    ns: Float64,
    trust: Float64,
    serial: NDArray[np.bool_],
    bound: NDArray[np.bool_],
) -> Float64:
    """Costs of `rises` and `rates`.

    Args:
        rises: float64[n, knots].
        rates: float64[n, len(_RATES)].
        ns: float64[n], times of the steps.
        trust: float64[n], weights of relative errors.
        serial: bool[n], which attend to prompts for as long as the longest takes.
        bound: bool[n], which tell only what launches take.
    """
    rows = ~bound if np.count_nonzero(~bound) >= FEWEST_MIXED // 2 else np.ones_like(bound)
    rates = rates.copy()
    rates[serial, :2] = 0.0
    rates[~serial, 2] = 0.0
    # What all steps have in the same amount belongs to the table: it cannot be told apart.
    rates[:, np.ptp(rates[rows], axis=0) == 0] = 0.0
    return nonnegative_costs(np.hstack([rises, rates])[rows], ns[rows], (trust / ns)[rows])


def _rate_columns(f: StepFeatures) -> Float64:
    """What `_RATES` are multiplied by: float64[n, len(_RATES)]."""
    columns = (
        f.prefill_pairs,
        f.prefill_context,
        np.maximum(f.prefill_max_context, 0),
        f.decode_context,
        f.prefill_requests,
        f.decode_requests,
        f.sampled_tokens > 0,
        f.sampled_tokens,
    )
    return np.column_stack(columns).astype(np.float64)


def _first_launches(kinds: Int64, ns: Float64) -> Float64:
    """What launches of each kind take at most, by the shortest steps: float64[kinds]."""
    least = np.zeros(len(LaunchFit.__struct_fields__))
    for kind in range(len(least)):
        of_kind = ns[kinds == kind]
        if len(of_kind) >= _FEWEST_OF_KIND:
            least[kind] = np.quantile(of_kind, 0.1)
    return least


def _best_launches(kinds: Int64, work_ns: Float64, ns: Float64) -> Float64:
    """What launches of each kind take if the work takes `work_ns`: float64[kinds].

    Nothing, where hardly a step has clearly less work than that.
    """
    least = np.zeros(len(LaunchFit.__struct_fields__))
    for kind in range(len(least)):
        rows = kinds == kind
        if np.count_nonzero(rows) < _FEWEST_OF_KIND:
            continue
        tried = np.quantile(ns[rows], np.linspace(0, 0.9, 40))
        waiting = _LAUNCH_BOUND * work_ns[rows] < tried[:, None]
        tried = np.append(0.0, tried[np.count_nonzero(waiting, axis=1) >= _FEWEST_OF_KIND])
        errors = np.maximum(tried[:, None], work_ns[rows]) / ns[rows] - 1
        least[kind] = tried[np.argmin(np.sum(np.abs(errors), axis=1))]
    return least


def _token_knots(features: StepFeatures, graph_tokens: Sequence[int]) -> Int64:
    """Where the table of tokens may bend: int64, ascending, 2 and more, about _MOST_KNOTS at most.

    These are the sizes of steps of one chunk or of decode items alone, so that each knot has a
    sample that hardly anything else enters into. Neighbours stay knots however close they are:
    where the engine changes from graphs to launches, or from one kernel to another, time jumps.
    """
    f = features
    tokens = padded_tokens(f, graph_tokens)
    alone = (f.prefill_tokens == 0) | ((f.prefill_requests == 1) & (f.decode_tokens == 0))
    sizes = np.unique(tokens[alone])
    if len(sizes) < 2:
        sizes = np.unique(tokens)
    knots = sizes[_may_be_knots(sizes)]
    padded = np.isin(knots, graph_tokens)  # all that steps of few tokens are ever read at
    others, most = knots[~padded], max(2, _MOST_KNOTS - int(padded.sum()))
    if len(others) > most:
        others = others[np.linspace(0, len(others) - 1, most).round().astype(np.int64)]
    knots = np.union1d(knots[padded], others)
    return knots if len(knots) > 1 else np.array([sizes[0], max(sizes[-1], sizes[0] + 1)])


def _rises(tokens: Int64, knots: Int64) -> Float64:
    """How much of the rise to each knot steps have: float64[n, knots].

    The first column is the value at the first knot, which all have; beyond the last knot the last
    rise goes on.
    """
    share = (tokens[:, None] - knots[:-1]) / np.diff(knots)
    share[:, :-1] = np.minimum(share[:, :-1], 1.0)
    return np.hstack([np.ones((len(tokens), 1)), np.maximum(share, 0.0)])


def nonnegative_costs(columns: Float64, ns: Float64, weights: Float64) -> Float64:
    """Nonnegative costs whose weighted errors have the least sum of squares.

    Args:
        columns: float64[n, m], amounts.
        ns: float64[n], what they are to sum up to.
        weights: float64[n], of the errors.

    Returns:
        float64[m]; 0 for a column of zeros.
    """
    weighted = columns * weights[:, None]
    scale = np.linalg.norm(weighted, axis=0)
    scale[scale == 0] = 1.0
    # Amounts differ by ten orders of magnitude: columns of one length solve well.
    costs, _ = nnls(weighted / scale, ns * weights, maxiter=100 * columns.shape[1])
    return np.asarray(costs / scale, np.float64)


# The host.


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


# How well it predicts.


def _residuals(
    graphs: Sequence[_Knots], others: _Steps, graph_tokens: Sequence[int]
) -> Iterator[Residual]:
    errors = {DECODE: _decode_errors(graphs)}
    if len(others):
        of_others, regions = _mixed_errors(others, graph_tokens), _regions(others.features)
        errors |= {region: of_others[regions == region] for region in REGIONS[1:]}
    for region, percent in errors.items():
        if len(percent):
            median, p90, p99 = np.percentile(np.abs(percent), (50, 90, 99)).tolist()
            yield Residual(
                region=region,
                count=len(percent),
                median_percent=median,
                p90_percent=p90,
                p99_percent=p99,
                bias_percent=float(np.median(percent)),
            )


def _decode_errors(graphs: Sequence[_Knots]) -> Float64:
    """Percent by which tables miss steps that are no knots, and knots that were left out."""
    errors = [np.zeros(0)]
    for knots in graphs:
        places = np.arange(len(knots.context))
        for left_out in places[1:-1]:
            predicted = knots.curve(places != left_out).column(knots.context[left_out, None])
            errors.append(100 * (predicted / knots.ns[left_out] - 1))
        others = knots.others
        predicted = knots.curve().column(others.features.decode_context)
        errors.append(100 * (predicted / others.ns - 1))
    return np.concatenate(errors)


def _mixed_errors(steps: _Steps, graph_tokens: Sequence[int]) -> Float64:
    """Percent by which each step is missed by a fit to the folds that its shape is not in."""
    f = steps.features
    rows = np.column_stack([getattr(f, name) for name in StepShape._fields])
    distinct, shape = np.unique(rows, axis=0, return_inverse=True)
    fold = (np.random.default_rng(0).permutation(len(distinct)) % _FOLDS)[shape.ravel()]
    errors = np.zeros(len(steps))
    for index in np.unique(fold).tolist():
        unseen = fold == index
        costs = MixedCosts(_mixed_fit(steps.at(~unseen), graph_tokens), graph_tokens)
        predicted = sum(costs.terms(steps.at(unseen).features).values())
        errors[unseen] = 100 * (predicted / steps.ns[unseen] - 1)
    return errors


def _regions(f: StepFeatures) -> NDArray[np.str_]:
    """The region of each step that is no decode graph."""
    conditions = [f.prefill_tokens == 0, f.decode_tokens > 0, f.prefill_context > 0]
    return np.select(conditions, [EAGER_DECODE, MIXED, PREFIX], PREFILL)
